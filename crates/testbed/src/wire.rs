//! PURE: as much of AMQP 0-9-1 and of Redis' protocol as it takes to tell where a message is on its way.

/// What a proxy has to know of AMQP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    ChannelOpen,
    Publish,
    Ack { tag: u64, multiple: bool },
    Other,
}

const GREETING: &[u8] = b"AMQP";
const METHOD_FRAME: u8 = 1;
/// Type, channel and length before the payload.
const HEAD: usize = 7;

/// How long the first frame is, or the greeting; none until all of it is there.
pub(crate) fn frame(bytes: &[u8]) -> Option<usize> {
    let length = if bytes.starts_with(GREETING) {
        8
    } else {
        let length = u32::from_be_bytes(bytes.get(3..HEAD)?.try_into().ok()?);
        // one more byte ends it
        HEAD + usize::try_from(length).ok()? + 1
    };
    (bytes.len() >= length).then_some(length)
}

/// The channel and the method of a frame; none if it carries none.
pub(crate) fn method(frame: &[u8]) -> Option<(u16, Method)> {
    if frame.first() != Some(&METHOD_FRAME) {
        return None;
    }
    let short = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let method = match (short(HEAD)?, short(HEAD + 2)?) {
        (20, 10) => Method::ChannelOpen,
        (60, 40) => Method::Publish,
        (60, 80) => {
            let tag = u64::from_be_bytes(frame.get(HEAD + 4..HEAD + 12)?.try_into().ok()?);
            Method::Ack { tag, multiple: frame.get(HEAD + 12)? & 1 == 1 }
        }
        _ => Method::Other,
    };
    Some((short(1)?, method))
}

/// How long the first command is, an array of strings as every client sends it; none until all of it is there.
pub(crate) fn command(bytes: &[u8]) -> Option<usize> {
    let (count, mut at) = number(bytes, 0)?;
    for _ in 0..count {
        let (length, text) = number(bytes, at)?;
        at = text + length + 2;
    }
    (bytes.len() >= at).then_some(at)
}

/// The number after the type's byte at `at`, and where the next line begins.
fn number(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = bytes.get(at + 1..)?;
    let end = rest.windows(2).position(|window| window == b"\r\n")?;
    let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((number, at + 1 + end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method_frame(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&[1, 0, 5][..], &length, payload, &[0xCE]].concat()
    }

    #[test]
    fn frames_are_told_apart_wherever_they_are_cut() {
        let ack = method_frame(&[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 1, 2, 1]);
        let both = [ack.clone(), method_frame(&[0, 60, 0, 40, 0, 0])].concat();
        assert!((0..ack.len()).all(|cut| frame(&both[..cut]).is_none()));
        assert_eq!(frame(&both), Some(ack.len()));
        assert_eq!(method(&ack), Some((5, Method::Ack { tag: 258, multiple: true })));
        assert_eq!(method(&both[ack.len()..]), Some((5, Method::Publish)));
        assert_eq!(frame(b"AMQP\0\0\x09\x01"), Some(8));
        assert_eq!(method(&[8, 0, 0, 0, 0, 0, 0, 0xCE]), None);
    }

    #[test]
    fn commands_are_told_apart_wherever_they_are_cut() {
        let first = b"*2\r\n$4\r\nXACK\r\n$3\r\n\r\n$\r\n";
        let both = [&first[..], b"*1\r\n$4\r\nPING\r\n"].concat();
        assert!((0..first.len()).all(|cut| command(&both[..cut]).is_none()));
        assert_eq!(command(&both), Some(first.len()));
        assert_eq!(command(&both[first.len()..]), Some(14));
    }
}
