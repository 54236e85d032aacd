//! Arguments of queues, exchanges and bindings, as values that can be compared.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable};

/// A value in an argument table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    Number(i64),
    Text(String),
    Flag(bool),
}

/// By name; a later value replaces an earlier one.
pub(crate) type Arguments = BTreeMap<String, Argument>;

impl Argument {
    /// As the broker writes it into the text of an error: nothing tells a number from its digits there.
    pub(crate) fn read(text: &str) -> Self {
        match text {
            "true" => Self::Flag(true),
            "false" => Self::Flag(false),
            text => text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Number),
        }
    }

    fn value(&self) -> AMQPValue {
        match self {
            Self::Number(number) => AMQPValue::LongLongInt(*number),
            Self::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Self::Flag(flag) => AMQPValue::Boolean(*flag),
        }
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Argument {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// As a header of a message with that value: what it is compared with by a headers exchange.
pub(crate) fn table(arguments: &Arguments) -> FieldTable {
    let entries = arguments.iter().map(|(name, argument)| (name.as_str().into(), argument.value()));
    FieldTable::from(entries.collect::<BTreeMap<_, _>>())
}
