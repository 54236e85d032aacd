//! `key = ..` of `derive(Message)`: the field, or the field of a field, that orders and partitions.

use proc_macro2::{Span, TokenStream};
use quote::quote_spanned;
use syn::{Data, Error, Expr, ExprLit, Fields, Index, Lit, Member, Result};

use crate::attr::{list, shown};

/// The way to the key: a field, a field of that field, and so on.
pub(crate) struct Key {
    members: Vec<Member>,
    pub(crate) shown: Span,
}

impl Key {
    /// Finds the field, by its name or its index, in quotes or without.
    pub(crate) fn read(data: &Data, value: &Expr) -> Result<Self> {
        let Data::Struct(data) = data else {
            let what = "`key` names a field, and an enum has none that all its variants share: write `impl Message` by \
                        hand, with a `match` in `key()`";
            return Err(Error::new_spanned(value, what));
        };
        let members = match value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => {
                text.parse().ok().and_then(|way: Expr| members(&way))
            }
            way => members(way),
        };
        let Some(members) = members else {
            let what =
                "`key` names a field: `key = customer`, `key = customer.id`, or `key = 0` in a tuple struct";
            return Err(Error::new_spanned(value, what));
        };
        match members.first() {
            Some(first) if !data.fields.members().any(|field| field == *first) => {
                Err(Error::new_spanned(value, no_field(first, &data.fields)))
            }
            _ => Ok(Key { members: respan(members, shown(value)), shown: shown(value) }),
        }
    }

    /// The key as an expression, of the paths that `private` begins.
    pub(crate) fn text(&self, private: &TokenStream) -> TokenStream {
        let members = &self.members;
        quote_spanned!(self.shown=> #private::KeyOf::new(&self #(.#members)*).text())
    }
}

/// `customer.id` as its parts.
fn members(way: &Expr) -> Option<Vec<Member>> {
    match way {
        Expr::Path(path) => Some(vec![path.path.get_ident()?.clone().into()]),
        Expr::Lit(ExprLit { lit: Lit::Int(index), .. }) => {
            let index = Index { index: index.base10_parse().ok()?, span: index.span() };
            Some(vec![Member::Unnamed(index)])
        }
        Expr::Field(field) => {
            let mut members = members(&field.base)?;
            members.push(field.member.clone());
            Some(members)
        }
        _ => None,
    }
}

/// The same members where `place` is, as generated code.
fn respan(members: Vec<Member>, place: Span) -> Vec<Member> {
    let respan = |member| match member {
        Member::Named(mut name) => {
            name.set_span(place);
            Member::Named(name)
        }
        Member::Unnamed(index) => Member::Unnamed(Index { span: place, ..index }),
    };
    members.into_iter().map(respan).collect()
}

fn no_field(wanted: &Member, fields: &Fields) -> String {
    let shown = |member: &Member| match member {
        Member::Named(name) => name.to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    };
    let wanted = shown(wanted);
    let names = list(fields.members().map(|member| shown(&member)));
    match fields.len() {
        0 => format!("no field `{wanted}`: the struct has no fields, so leave `key` out"),
        1 => format!("no field `{wanted}`: the only field is {names}"),
        _ => format!("no field `{wanted}`: the fields are {names}"),
    }
}
