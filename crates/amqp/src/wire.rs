//! PURE: whether the client can read a frame of the broker's, and what it reads in place of one that it cannot.
//!
//! The broker passes headers and routing keys on as publishers wrote them. The client parses nested tables by recursion,
//! which a message can drive through the end of its stack, and takes text that is not UTF-8 for a broken connection. Both
//! would come back with the redelivery. So such a message is delivered without its headers, marked as
//! [`UNREADABLE`](known::UNREADABLE), and core sends it to the dead letters with its body untouched.

use steadfast_core::known;

/// Deepest nesting of tables and arrays that is let through; what people write has two or three levels.
const DEEPEST: usize = 32;
/// The bit of the flags that says that there are headers.
const HEADERS: u16 = 1 << 13;
/// Properties in the order of their flags, from the highest bit: how each is encoded.
const PROPERTIES: [Encoded; 14] = [
    Encoded::Text,   // content-type
    Encoded::Text,   // content-encoding
    Encoded::Table,  // headers
    Encoded::Bytes1, // delivery-mode
    Encoded::Bytes1, // priority
    Encoded::Text,   // correlation-id
    Encoded::Text,   // reply-to
    Encoded::Text,   // expiration
    Encoded::Text,   // message-id
    Encoded::Bytes8, // timestamp
    Encoded::Text,   // type
    Encoded::Text,   // user-id
    Encoded::Text,   // app-id
    Encoded::Text,   // cluster-id
];
/// Class, weight and body size come before the flags.
const BEFORE_FLAGS: usize = 12;

#[derive(Clone, Copy)]
enum Encoded {
    Text,
    Table,
    Bytes1,
    Bytes8,
}

/// The payload of a content header in place of this one; none where this one can be read.
pub(crate) fn in_place_of(payload: &[u8]) -> Option<Vec<u8>> {
    let (fixed, flagged) = payload.split_at_checked(BEFORE_FLAGS)?;
    let odd = Walk::new(flagged).find_map(|step| step.odd())?;
    let (mut flags, mut head, mut tail, mut left_out) = (HEADERS, Vec::new(), Vec::new(), 0);
    for step in Walk::new(flagged) {
        match step {
            Step::Property { encoded: Encoded::Table, whole, .. } => left_out = whole.len(),
            Step::Property { flag, whole, .. } if step.odd().is_none() => {
                flags |= flag;
                if flag > HEADERS { &mut head } else { &mut tail }.extend_from_slice(whole);
            }
            Step::Property { .. } | Step::Broken => {}
        }
    }
    Some([fixed, &flags.to_be_bytes(), &head, &marker(odd, left_out), &tail].concat())
}

/// The properties of a content header, one after the other; behind what cannot be read nothing more is.
struct Walk<'a> {
    flags: u16,
    rest: &'a [u8],
    at: usize,
}

enum Step<'a> {
    Property { flag: u16, encoded: Encoded, whole: &'a [u8] },
    Broken,
}

impl<'a> Walk<'a> {
    fn new(flagged: &'a [u8]) -> Self {
        match flagged.split_first_chunk::<2>() {
            // the lowest bit says that more flags follow, which no property needs
            Some((flags, rest)) => Self { flags: u16::from_be_bytes(*flags), rest, at: 0 },
            None => Self { flags: 1, rest: &[], at: 0 },
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        while let Some(encoded) = PROPERTIES.get(self.at) {
            let flag = 1 << (15 - self.at);
            self.at += 1;
            if self.flags & flag != 0 {
                let whole = property(&mut self.rest, *encoded);
                let Some(whole) = whole else {
                    self.at = PROPERTIES.len() + 1;
                    return Some(Step::Broken);
                };
                return Some(Step::Property { flag, encoded: *encoded, whole });
            }
        }
        let odd = self.at == PROPERTIES.len() && (self.flags & 3 != 0 || !self.rest.is_empty());
        self.at = PROPERTIES.len() + 1;
        odd.then_some(Step::Broken)
    }
}

impl Step<'_> {
    fn odd(&self) -> Option<Odd> {
        match self {
            Self::Broken => Some(Odd::Broken),
            Self::Property { encoded: Encoded::Table, whole, .. } => oddity(whole),
            Self::Property { encoded: Encoded::Text, whole, .. } => {
                let text = whole.get(1..).unwrap_or_default();
                std::str::from_utf8(text).is_err().then_some(Odd::NotText)
            }
            Self::Property { encoded: Encoded::Bytes1 | Encoded::Bytes8, .. } => None,
        }
    }
}

/// A table with the one header that says why the others are missing.
fn marker(odd: Odd, size: usize) -> Vec<u8> {
    let text = match odd {
        Odd::Deep => {
            format!("its headers are nested more than {DEEPEST} deep and were left out ({size} bytes)")
        }
        Odd::NotText => format!(
            "its properties or headers have text that is not UTF-8; left out ({size} bytes of headers)"
        ),
        Odd::Broken => format!(
            "its properties or headers are not encoded as AMQP says; left out ({size} bytes of headers)"
        ),
    };
    let mut table = Vec::with_capacity(known::UNREADABLE.len() + text.len() + 6);
    table.push(u8::try_from(known::UNREADABLE.len()).unwrap_or_default());
    table.extend_from_slice(known::UNREADABLE.as_bytes());
    table.push(b'S');
    table.extend_from_slice(&length(text.len()));
    table.extend_from_slice(text.as_bytes());
    [&length(table.len())[..], &table].concat()
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// The next property, its length included.
fn property<'a>(rest: &mut &'a [u8], encoded: Encoded) -> Option<&'a [u8]> {
    let size = match encoded {
        Encoded::Bytes1 => 1,
        Encoded::Bytes8 => 8,
        Encoded::Text => 1 + usize::from(*rest.first()?),
        Encoded::Table => 4 + long(*rest.first_chunk::<4>()?),
    };
    let (property, after) = rest.split_at_checked(size)?;
    *rest = after;
    Some(property)
}

/// Why a table cannot be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Deep,
    NotText,
    Broken,
}

/// One table or array that is being read: where it ends, and whether its values have names.
#[derive(Clone, Copy)]
struct Level {
    end: usize,
    named: bool,
}

/// What is odd about an encoded table, its length included. Without recursion: that is the point.
fn oddity(table: &[u8]) -> Option<Odd> {
    let mut at = 4;
    let mut levels = [Level { end: table.len(), named: true }; DEEPEST];
    let mut depth = 1;
    while let Some(&Level { end, named }) = levels.get(..depth).and_then(<[_]>::last) {
        if at == end {
            depth -= 1;
            continue;
        }
        if named {
            let Some(name) = texts(table, &mut at, end) else { return Some(Odd::Broken) };
            if std::str::from_utf8(name).is_err() {
                return Some(Odd::NotText);
            }
        }
        let Some(kind) = table.get(at).filter(|_| at < end) else { return Some(Odd::Broken) };
        at += 1;
        let rest = table.get(at..end).unwrap_or_default();
        let size = match kind {
            b'V' => Some(0),
            b't' | b'b' | b'B' => Some(1),
            b's' | b'U' | b'u' => Some(2),
            b'I' | b'i' | b'f' => Some(4),
            b'D' => Some(5),
            b'L' | b'l' | b'd' | b'T' => Some(8),
            b'S' | b'x' | b'A' | b'F' => rest.first_chunk::<4>().map(|size| 4 + long(*size)),
            _ => None,
        };
        let Some(size) = size.filter(|size| *size <= rest.len()) else { return Some(Odd::Broken) };
        if matches!(kind, b'A' | b'F') {
            let Some(level) = levels.get_mut(depth) else { return Some(Odd::Deep) };
            *level = Level { end: at + size, named: *kind == b'F' };
            depth += 1;
            at += 4;
        } else {
            at += size;
        }
    }
    None
}

/// Makes the text in a `basic.deliver` or `basic.return` readable: of what is not UTF-8, bytes become question marks.
pub(crate) fn make_readable(method: &mut [u8]) {
    // where the first text begins, and what is between it and the exchange
    let (mut at, between) = match method.get(..4) {
        Some([0, 60, 0, 60]) => (4, 9),
        Some([0, 60, 0, 50]) => (6, 0),
        _ => return,
    };
    for skip in [between, 0, 0] {
        let end = method.len();
        let Some(size) = texts(method, &mut at, end).map(<[u8]>::len) else { return };
        let Some(text) = method.get_mut(at - size..at) else { return };
        if std::str::from_utf8(text).is_err() {
            text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        at += skip;
    }
}

/// The short text at `at`, which moves behind it.
fn texts<'a>(bytes: &'a [u8], at: &mut usize, end: usize) -> Option<&'a [u8]> {
    let size = usize::from(*bytes.get(*at).filter(|_| *at < end)?);
    let text = bytes.get(*at + 1..(*at + 1 + size).min(end)).filter(|text| text.len() == size)?;
    *at += 1 + size;
    Some(text)
}

fn long(bytes: [u8; 4]) -> usize {
    usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use lapin::types::ShortString;
    use proptest::prelude::*;

    use super::*;

    fn text(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text].concat()
    }

    fn long_text(kind: u8, text: &[u8]) -> Vec<u8> {
        [&[kind], &length(text.len())[..], text].concat()
    }

    fn table(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
        let entries: Vec<u8> =
            entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
        [&length(entries.len())[..], &entries].concat()
    }

    fn nested(levels: usize) -> Vec<u8> {
        (1..levels).fold(table(&[]), |inner, _| table(&[(b"n", [b"F", &inner[..]].concat())]))
    }

    /// Content type, headers, delivery mode and message id.
    fn header(content_type: &[u8], table: &[u8], id: &[u8]) -> Vec<u8> {
        let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        let flags = ((1_u16 << 15) | HEADERS | (1 << 12) | (1 << 7)).to_be_bytes();
        [&fixed[..], &flags, &text(content_type), table, &[2], &text(id)].concat()
    }

    /// What the client makes of it.
    fn read(payload: &[u8]) -> lapin::protocol::basic::AMQPProperties {
        let (rest, properties) =
            lapin::protocol::basic::parse_properties(&payload[BEFORE_FLAGS..]).expect("readable");
        assert!(rest.is_empty());
        properties
    }

    fn why(payload: &[u8]) -> String {
        let headers = read(payload).headers().clone().expect("there");
        assert_eq!(headers.inner().len(), 1);
        match &headers.inner()[known::UNREADABLE] {
            lapin::types::AMQPValue::LongString(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_can_be_read_is_left_alone() {
        let values = [
            (&b"t"[..], vec![b't', 1]),
            (b"i", vec![b'I', 0, 0, 0, 7]),
            (b"s", long_text(b'S', &[0xff, 0xfe])),
            (b"a", long_text(b'A', &[b'V', b't', 0, b'F', 0, 0, 0, 0])),
            (b"d", vec![b'D', 2, 0, 0, 0, 1]),
            (b"deep", [b"F", &nested(DEEPEST - 1)[..]].concat()),
        ];
        let payload = header("application/jsön".as_bytes(), &table(&values), b"id");
        assert_eq!(in_place_of(&payload), None);
        assert_eq!(read(&payload).headers().as_ref().expect("there").inner().len(), values.len());
        let long = [b'x'; 200];
        assert_eq!(in_place_of(&header(&long, &table(&[]), &long)), None, "a length is no text");
    }

    #[test]
    fn a_table_without_an_end_to_its_depth_is_left_out_and_the_rest_kept() {
        for levels in [DEEPEST + 1, 1_000, 15_000] {
            let payload = header(b"json", &nested(levels), b"id");
            let replaced = in_place_of(&payload).expect("too deep");
            assert!(why(&replaced).contains("nested more than 32 deep"));
            let properties = read(&replaced);
            assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("json"));
            assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("id"));
            assert_eq!(properties.delivery_mode(), &Some(2));
            assert_eq!(replaced[..BEFORE_FLAGS], payload[..BEFORE_FLAGS]);
        }
        assert_eq!(in_place_of(&header(b"", &nested(DEEPEST), b"")), None);
    }

    #[test]
    fn text_that_is_none_is_left_out_and_said() {
        let named = table(&[(&[0xff][..], vec![b't', 1])]);
        assert!(why(&in_place_of(&header(b"json", &named, b"id")).expect("odd")).contains("not UTF-8"));
        let replaced = in_place_of(&header(&[0xc3], &table(&[]), b"id")).expect("odd");
        let properties = read(&replaced);
        assert_eq!((properties.content_type(), properties.delivery_mode()), (&None, &Some(2)));
        let replaced = in_place_of(&header(b"json", &table(&[]), &[0xff])).expect("odd");
        assert_eq!((read(&replaced).message_id(), why(&replaced).contains("not UTF-8")), (&None, true));
    }

    #[test]
    fn a_routing_key_that_is_no_text_becomes_one() {
        let deliver = |key: &[u8]| {
            [&[0, 60, 0, 60][..], &text(b"tag"), &[0, 0, 0, 0, 0, 0, 0, 9, 0], &text(b""), &text(key)]
                .concat()
        };
        let mut method = deliver(&[b'a', 0xff, b'b']);
        make_readable(&mut method);
        assert_eq!(method, deliver(b"a?b"));
        let mut fine = deliver("schön".as_bytes());
        make_readable(&mut fine);
        assert_eq!(fine, deliver("schön".as_bytes()));
        let returned =
            |key: &[u8]| [&[0, 60, 0, 50, 1, 56][..], &text(b"NO_ROUTE"), &text(b"x"), &text(key)].concat();
        let mut method = returned(&[0xff]);
        make_readable(&mut method);
        assert_eq!(method, returned(b"?"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        /// Whatever a publisher sends, the client can read what it is given.
        #[test]
        fn what_is_let_through_can_be_read(
            noise in prop::collection::vec(any::<u8>(), 0..200), flags in any::<u16>(),
            at in 0_usize..300, byte in any::<u8>(), deep in 0_usize..40,
        ) {
            let mut spoilt = header(b"json", &table(&[(b"a", vec![b't', 1]), (b"n", [b"F", &nested(deep.max(1))[..]].concat())]), b"id");
            let place = BEFORE_FLAGS + at % (spoilt.len() - BEFORE_FLAGS);
            spoilt[place] = byte;
            let random = [&[0; BEFORE_FLAGS][..], &flags.to_be_bytes(), &noise].concat();
            for payload in [spoilt, random] {
                read(&in_place_of(&payload).unwrap_or(payload));
            }
        }

        #[test]
        fn a_method_stays_as_long_as_it_is(mut method in prop::collection::vec(any::<u8>(), 0..80), deliver in any::<bool>()) {
            let head = [0, 60, 0, if deliver { 60 } else { 50 }];
            for (byte, head) in method.iter_mut().zip(head) {
                *byte = head;
            }
            let before = method.len();
            make_readable(&mut method);
            prop_assert_eq!(method.len(), before);
        }
    }
}
