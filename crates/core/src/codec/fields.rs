//! Flat fields into a struct: each field's text becomes what the struct's field of that name wants.
//!
//! Numbers and booleans are parsed, text stays text, bytes stay bytes; a list, a map or a nested struct is read as JSON.

use std::fmt;

use bytes::Bytes;
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};

pub(super) fn from_fields<T: DeserializeOwned>(fields: &[(String, Bytes)]) -> Result<T, FieldError> {
    T::deserialize(MapDeserializer::new(
        fields.iter().map(|(name, value)| (name.as_str(), Field { name, value })),
    ))
}

#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'a str,
    value: &'a [u8],
}

impl<'a> Field<'a> {
    fn text(self) -> Result<&'a str, FieldError> {
        std::str::from_utf8(self.value).map_err(|_| FieldError(format!("field `{}` is not UTF-8", self.name)))
    }

    fn parse<T: std::str::FromStr>(self, wanted: &str) -> Result<T, FieldError> {
        let text = self.text()?;
        let fail = |_| FieldError(format!("field `{}` must be {wanted}, and is {text:?}", self.name));
        text.trim().parse().map_err(fail)
    }

    fn json(self) -> serde_json::Deserializer<serde_json::de::SliceRead<'a>> {
        serde_json::Deserializer::from_slice(self.value)
    }

    fn not_json(self, error: &serde_json::Error) -> FieldError {
        FieldError(format!("field `{}` is not the JSON it should be: {error}", self.name))
    }
}

impl<'a> IntoDeserializer<'a, FieldError> for Field<'a> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty, $wanted:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
            visitor.$visit(self.parse::<$type>($wanted)?)
        })*
    };
}

macro_rules! as_json {
    ($($method:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, FieldError> {
            self.json().$method($($arg,)* visitor).map_err(|error| self.not_json(&error))
        })*
    };
}

impl<'de> Deserializer<'de> for Field<'de> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match std::str::from_utf8(self.value) {
            Ok(text) => visitor.visit_borrowed_str(text),
            Err(_) => visitor.visit_borrowed_bytes(self.value),
        }
    }

    parsed! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_i8 visit_i8 i8, "an integer";
        deserialize_i16 visit_i16 i16, "an integer";
        deserialize_i32 visit_i32 i32, "an integer";
        deserialize_i64 visit_i64 i64, "an integer";
        deserialize_i128 visit_i128 i128, "an integer";
        deserialize_u8 visit_u8 u8, "a number from 0";
        deserialize_u16 visit_u16 u16, "a number from 0";
        deserialize_u32 visit_u32 u32, "a number from 0";
        deserialize_u64 visit_u64 u64, "a number from 0";
        deserialize_u128 visit_u128 u128, "a number from 0";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
        deserialize_char visit_char char, "one character";
    }

    as_json! {
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_borrowed_bytes(self.value)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_bytes(visitor)
    }

    /// There is no null among fields: one that is there is `Some`.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        let text = self.text()?;
        if text.starts_with('{') {
            return self
                .json()
                .deserialize_enum(name, variants, visitor)
                .map_err(|error| self.not_json(&error));
        }
        visitor.visit_enum(de::value::BorrowedStrDeserializer::new(text))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_unit()
    }
}

/// Why fields do not decode.
#[derive(Debug)]
pub(super) struct FieldError(String);

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        New,
        Old,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Order {
        id: u64,
        customer: String,
        paid: bool,
        rate: f64,
        kind: Kind,
        note: Option<String>,
        missing: Option<u8>,
        lines: Vec<u32>,
    }

    fn fields(pairs: &[(&str, &str)]) -> Vec<(String, Bytes)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), Bytes::copy_from_slice(v.as_bytes()))).collect()
    }

    const WHOLE: &[(&str, &str)] = &[
        ("id", "42"),
        ("customer", "7"),
        ("paid", "true"),
        ("rate", "0.5"),
        ("kind", "old"),
        ("note", ""),
        ("lines", "[1,2]"),
        ("stranger", "x"),
    ];

    #[test]
    fn text_becomes_what_the_struct_wants() {
        let order: Order = from_fields(&fields(WHOLE)).expect("decodes");
        let customer = "7".to_owned();
        let want = Order {
            id: 42,
            customer,
            paid: true,
            rate: 0.5,
            kind: Kind::Old,
            note: Some(String::new()),
            missing: None,
            lines: vec![1, 2],
        };
        assert_eq!(order, want);
    }

    #[test]
    fn errors_name_the_field() {
        for (name, value) in [("id", "-1"), ("paid", "yes"), ("lines", "[1"), ("id", "x")] {
            let mut broken = WHOLE.to_vec();
            broken.iter_mut().find(|(n, _)| *n == name).expect("there").1 = value;
            let error = from_fields::<Order>(&fields(&broken)).expect_err("broken").to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        let error = from_fields::<Order>(&fields(&WHOLE[1..])).expect_err("incomplete").to_string();
        assert!(error.contains("`id`"), "{error}");
    }
}
