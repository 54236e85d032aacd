use steadfast::prelude::*;

#[handler]
async fn on_text(_: String) -> Result<(), Failure> {
    Ok(())
}

fn main() {}
