//! PURE: what of the broker's bytes the client gets to see.
//!
//! Two things must not reach it, because it gives up the whole connection for them, and with it every consumer there:
//!
//! - **Frames of a channel that the broker has closed.** RabbitMQ goes on for a moment with deliveries that were under way,
//!   and answers a close that crossed its own. The client has forgotten the channel by then and takes them for a broken
//!   protocol. They are dropped until the channel's number is opened again.
//! - **Content that it cannot read**: see [`wire`].
//!
//! Frames are 1 byte of type, 2 of channel, 4 of size, the payload, and 1 at the end. Bodies stream through; only methods
//! and content headers, which are small, are looked at as a whole.

use std::collections::HashSet;

use crate::wire;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const LAST_KIND: u8 = 8;
/// Type, channel and size.
const PREFIX: usize = 7;
/// Methods and headers above this are not looked at: the client refuses frames that are larger than was agreed on.
const LARGEST: usize = 1024 * 1024;
/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// Bytes on their way from the socket to the client.
#[derive(Debug, Default)]
pub(crate) struct Sieve {
    buf: Vec<u8>,
    /// Before it: the client has them. From it to `passed`: the client may have them. From there to `end`: not looked at.
    start: usize,
    passed: usize,
    end: usize,
    /// What is left of a frame that is passed, or dropped, as it comes.
    passing: usize,
    dropping: usize,
    /// Channels that the broker has closed and nobody opened since.
    closed: HashSet<u16>,
    /// This is not AMQP 0-9-1: all is passed.
    blind: bool,
}

impl Sieve {
    /// Where to read to; [`filled`](Self::filled) says how much came.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.passed, self.end) = (self.passed - self.start, self.end - self.start);
            self.start = 0;
        }
        if self.buf.len() < self.end + CHUNK {
            self.buf.resize(self.end + CHUNK, 0);
        }
        &mut self.buf[self.end..]
    }

    pub(crate) fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buf.len());
        self.look();
    }

    /// Gives the client what it may have; 0 where there is nothing.
    pub(crate) fn hand_out(&mut self, into: &mut [u8]) -> usize {
        if self.start == self.passed {
            self.look();
        }
        let bytes = into.len().min(self.passed - self.start);
        into[..bytes].copy_from_slice(&self.buf[self.start..self.start + bytes]);
        self.start += bytes;
        bytes
    }

    /// Looks at frames as long as the next one is whole, and passed or dropped in one piece with what is handed out.
    fn look(&mut self) {
        while self.passed < self.end {
            let ahead = self.end - self.passed;
            if self.blind {
                self.passed = self.end;
            } else if self.passing > 0 {
                let bytes = self.passing.min(ahead);
                (self.passing, self.passed) = (self.passing - bytes, self.passed + bytes);
            } else if self.dropping > 0 {
                // what comes before it goes first, so that the rest stays in one piece
                if self.start < self.passed {
                    return;
                }
                let bytes = self.dropping.min(ahead);
                (self.dropping, self.passed) = (self.dropping - bytes, self.passed + bytes);
                self.start = self.passed;
            } else if !self.look_at_frame() {
                return;
            }
        }
    }

    /// False where more of it has to come first.
    fn look_at_frame(&mut self) -> bool {
        let ahead = &mut self.buf[self.passed..self.end];
        let Some(&[kind, c1, c0, s3, s2, s1, s0]) = ahead.first_chunk::<PREFIX>() else {
            self.blind = ahead.first().is_some_and(|kind| *kind > LAST_KIND);
            return self.blind;
        };
        let channel = u16::from_be_bytes([c1, c0]);
        let size = usize::try_from(u32::from_be_bytes([s3, s2, s1, s0])).unwrap_or(usize::MAX / 2);
        let whole = size.saturating_add(PREFIX + 1);
        let is_closed = channel != 0 && self.closed.contains(&channel);
        self.blind = kind > LAST_KIND;
        if self.blind {
            return true;
        }
        if !matches!(kind, METHOD | HEADER) || whole > LARGEST {
            if is_closed {
                self.dropping = whole;
            } else {
                self.passing = whole;
            }
            return true;
        }
        let Some((_, payload)) = ahead.get_mut(PREFIX..whole).and_then(<[u8]>::split_last_mut) else {
            return false;
        };
        match (kind, payload.get(..4)) {
            (METHOD, Some([0, 20, 0, 40])) if !is_closed => _ = self.closed.insert(channel),
            (METHOD, Some([0, 20, 0, 11])) => _ = self.closed.remove(&channel),
            _ if is_closed => {
                self.dropping = whole;
                return true;
            }
            (METHOD, _) => wire::make_readable(payload),
            _ => {
                if let Some(readable) = wire::in_place_of(payload) {
                    return self.replace(whole, &readable);
                }
            }
        }
        self.passing = whole;
        true
    }

    /// Puts another payload into a frame that is there as a whole.
    fn replace(&mut self, whole: usize, payload: &[u8]) -> bool {
        let frame = self.passed;
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.buf[frame + 3..frame + PREFIX].copy_from_slice(&size);
        self.buf.splice(frame + PREFIX..frame + whole - 1, payload.iter().copied());
        self.end = self.end - whole + payload.len() + PREFIX + 1;
        self.passing = payload.len() + PREFIX + 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&[kind], &channel.to_be_bytes()[..], &size, payload, &[0xce]].concat()
    }

    /// Lets it all through, in pieces that are read and pieces that are handed out.
    fn sift(bytes: &[u8], pieces: &[usize], outlets: &[usize]) -> Vec<u8> {
        let (mut sieve, mut out, mut rest) = (Sieve::default(), Vec::new(), bytes);
        let (mut pieces, mut outlets) = (pieces.iter().cycle(), outlets.iter().cycle());
        loop {
            let mut into = vec![0; *outlets.next().expect("cycles")];
            match sieve.hand_out(&mut into) {
                0 if rest.is_empty() => return out,
                0 => {
                    let piece = (*pieces.next().expect("cycles")).min(rest.len());
                    sieve.space()[..piece].copy_from_slice(&rest[..piece]);
                    sieve.filled(piece);
                    rest = &rest[piece..];
                }
                bytes => out.extend_from_slice(&into[..bytes]),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Sent {
        Deliver(u16, usize),
        Close(u16),
        CloseOk(u16),
        OpenOk(u16),
        Heartbeat,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let channel = || 1_u16..4;
        prop_oneof![
            6 => (channel(), 0_usize..300).prop_map(|(channel, body)| Sent::Deliver(channel, body)),
            1 => channel().prop_map(Sent::Close),
            1 => channel().prop_map(Sent::CloseOk),
            2 => channel().prop_map(Sent::OpenOk),
            1 => Just(Sent::Heartbeat),
        ]
    }

    impl Sent {
        fn channel(&self) -> u16 {
            match self {
                Self::Deliver(channel, _)
                | Self::Close(channel)
                | Self::CloseOk(channel)
                | Self::OpenOk(channel) => *channel,
                Self::Heartbeat => 0,
            }
        }

        fn encode(&self) -> Vec<u8> {
            match self {
                Self::Deliver(channel, body) => {
                    let deliver = [0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, b'q'];
                    let header = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0];
                    let body = frame(3, *channel, &vec![0xce; *body]);
                    [frame(METHOD, *channel, &deliver), frame(HEADER, *channel, &header), body].concat()
                }
                Self::Close(channel) => frame(METHOD, *channel, &[0, 20, 0, 40, 1, 148, 0, 0, 0, 0, 0]),
                Self::CloseOk(channel) => frame(METHOD, *channel, &[0, 20, 0, 41]),
                Self::OpenOk(channel) => frame(METHOD, *channel, &[0, 20, 0, 11, 0, 0, 0, 0]),
                Self::Heartbeat => frame(8, 0, &[]),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn a_closed_channel_is_silent_until_it_is_opened(
            sent in prop::collection::vec(sent(), 0..60),
            pieces in prop::collection::vec(1_usize..400, 1..8), outlets in prop::collection::vec(1_usize..400, 1..8),
        ) {
            let (mut closed, mut want) = (HashSet::new(), Vec::new());
            for sent in &sent {
                match sent {
                    Sent::OpenOk(channel) => _ = closed.remove(channel),
                    _ if closed.contains(&sent.channel()) => continue,
                    Sent::Close(channel) => _ = closed.insert(*channel),
                    Sent::Deliver(..) | Sent::CloseOk(_) | Sent::Heartbeat => {}
                }
                want.extend(sent.encode());
            }
            let bytes: Vec<u8> = sent.iter().flat_map(Sent::encode).collect();
            prop_assert_eq!(sift(&bytes, &pieces, &outlets), want);
        }

        #[test]
        fn what_is_no_frame_is_passed_as_it_is(noise in prop::collection::vec(any::<u8>(), 0..2_000), piece in 1_usize..99) {
            let bytes = [&b"AMQP\0\x01\0\0"[..], &noise].concat();
            prop_assert_eq!(sift(&bytes, &[piece], &[piece]), bytes);
        }
    }

    #[test]
    fn a_header_that_cannot_be_read_is_replaced_in_its_place() {
        let message_id = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x80, 1, 0xff];
        let around = |header: &[u8]| [frame(8, 0, &[]), frame(HEADER, 1, header), frame(3, 1, b"x")].concat();
        let readable = wire::in_place_of(&message_id).expect("not readable");
        for piece in [1, 7, 30, 1_000] {
            assert_eq!(sift(&around(&message_id), &[piece], &[piece]), around(&readable));
        }
    }

    #[test]
    fn a_large_frame_is_not_kept() {
        let mut sieve = Sieve::default();
        let large = frame(3, 1, &vec![7; 8 * LARGEST]);
        let mut out = 0;
        for piece in large.chunks(CHUNK) {
            sieve.space()[..piece.len()].copy_from_slice(piece);
            sieve.filled(piece.len());
            let mut into = vec![0; CHUNK];
            out += sieve.hand_out(&mut into);
            assert!(sieve.buf.len() <= 2 * CHUNK);
        }
        assert_eq!(out, large.len());
    }
}
