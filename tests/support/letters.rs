//! What lies in a queue or a stream.
#![expect(clippy::expect_used, reason = "a test that cannot look has nothing to say")]

use steadfast_core::Operator;

/// Ids of all of it, in order; it is looked at, and stays where it is.
///
/// # Panics
/// If it cannot be looked at.
pub async fn ids(operator: &dyn Operator, place: &str) -> Vec<String> {
    let walk = operator.walk(place).await.expect("walks");
    let mut ids = Vec::new();
    loop {
        let page = walk.next(200).await.expect("reads");
        if page.is_empty() {
            break;
        }
        for letter in page {
            ids.push(letter.id().into_owned());
            walk.keep(letter.mark);
        }
    }
    walk.close().await.expect("closes");
    ids
}
