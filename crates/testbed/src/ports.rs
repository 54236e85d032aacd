//! Free ports on the loopback address.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::{TestbedError, TestbedErrorKind};
use crate::unique::random;

/// Below the range from which Linux takes the ports of outgoing connections (32768 and up). A broker's port must not be
/// in that range: while the broker is down, a client that keeps trying to reconnect would sooner or later be given that
/// very port for its own end, connect to itself, and hold the port against the restart.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// `N` different ports that nobody listens on right now. Another process may still take one before the broker does,
/// which is why starting a broker is tried again with other ports.
pub(crate) fn free<const N: usize>() -> Result<[u16; N], TestbedError> {
    let mut held = Vec::with_capacity(N);
    for _ in 0..1_000 {
        if held.len() == N {
            break;
        }
        let offset = u16::try_from(random() % u64::from(COUNT)).unwrap_or_default();
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + offset)) {
            held.push((FIRST + offset, listener));
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    ports.try_into().map_err(|_| {
        let last = FIRST + COUNT;
        TestbedError::new(
            TestbedErrorKind::Io,
            format!("found no free port on 127.0.0.1 from {FIRST} to {last}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_outside_the_range_of_outgoing_connections() -> Result<(), TestbedError> {
        let [a, b, c] = free::<3>()?;
        assert!(a != b && b != c && a != c);
        assert!([a, b, c].iter().all(|port| (FIRST..FIRST + COUNT).contains(port)));
        Ok(())
    }
}
