//! Writes the orders of `examples/data/orders.ndjson`, the same ones every time:
//!
//! ```text
//! cargo run --example generate_orders > examples/data/orders.ndjson
//! cargo run --example generate_orders -- 500000 | cargo run --release --example orders -- --input -
//! ```

use std::io::{self, BufWriter, Write};

const SHIPPED: usize = 10_000;
const CUSTOMERS: usize = 500;

fn main() -> io::Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(SHIPPED), |text| text.parse()).map_err(io::Error::other)?;
    let mut random = Random(2026);
    let mut out = BufWriter::new(io::stdout().lock());
    for (index, fate) in fates(count, &mut random).into_iter().enumerate() {
        writeln!(out, "{}", order(index + 1, fate, &mut random))?;
    }
    out.flush()
}

/// What is to become of an order.
#[derive(Clone, Copy)]
enum Fate {
    Fine,
    Simulated(&'static str),
    /// JSON with a quote missing.
    Broken,
    /// JSON with text where a number belongs.
    WrongType,
    /// JSON that ends in the middle.
    Truncated,
}

/// For each 10,000 orders: 100 fail once, 20 always fail, 10 panic, 20 do not decode, and all else is fine.
fn fates(count: usize, random: &mut Random) -> Vec<Fate> {
    let share = |of_ten_thousand: usize| (count * of_ten_thousand).div_ceil(10_000);
    let mut fates = Vec::with_capacity(count);
    for (fate, how_many) in [
        (Fate::Simulated("fail_once"), share(100)),
        (Fate::Simulated("fail_always"), share(20)),
        (Fate::Simulated("panic"), share(10)),
        (Fate::Broken, share(7)),
        (Fate::WrongType, share(7)),
        (Fate::Truncated, share(6)),
        (Fate::Fine, count),
    ] {
        fates.extend(std::iter::repeat_n(fate, how_many));
    }
    fates.truncate(count);
    for index in (1..fates.len()).rev() {
        fates.swap(index, random.below(index + 1));
    }
    fates
}

fn order(id: usize, fate: Fate, random: &mut Random) -> String {
    let customer = random.below(CUSTOMERS);
    let (kind, rest) = if random.below(5) == 0 {
        let reason = ["late", "changed_mind", "out_of_stock"][random.below(3)];
        ("order.cancelled", format!(r#""reason":"{reason}""#))
    } else {
        ("order.placed", format!(r#""cents":{}"#, 100 + random.below(50_000)))
    };
    let line = format!(r#"{{"type":"{kind}","id":{id},"customer":"c-{customer:03}",{rest}}}"#);
    match fate {
        Fate::Fine => line,
        Fate::Simulated(what) => line.replace('}', &format!(r#","simulate":"{what}"}}"#)),
        Fate::Broken => line.replace(r#","customer""#, ",customer"),
        Fate::WrongType => line.replace(&format!(r#""id":{id}"#), &format!(r#""id":"number {id}""#)),
        Fate::Truncated => line[..line.len() - 12].to_owned(),
    }
}

/// `SplitMix64`: the same numbers on every machine, without a dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = u64::try_from(limit).unwrap_or(1).max(1);
        usize::try_from((mixed ^ (mixed >> 31)) % limit).unwrap_or(0)
    }
}
