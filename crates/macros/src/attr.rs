//! What the attributes share: options, their values, and the sentences that refuse them.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{Error, Expr, ExprLit, Ident, Lit, LitInt, LitStr, Path, Result, Token};

/// The refusals so far: one compile shows them all.
#[derive(Default)]
pub(crate) struct Refusals(Option<Error>);

impl Refusals {
    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }

    /// The value, or `None` and one refusal more.
    pub(crate) fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// Sets an option once.
    pub(crate) fn set<T>(&mut self, slot: &mut Option<T>, key: &Ident, value: Result<T>) {
        if slot.is_some() {
            self.push(Error::new_spanned(key, format!("`{key}` is given twice: keep one")));
        } else {
            *slot = self.keep(value);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl ToTokens for Refusals {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.extend(self.0.as_ref().map(Error::to_compile_error));
    }
}

/// An option by its name, with an example of its use for the sentence that asks for it.
pub(crate) type Known = (&'static str, &'static str);

/// `name = value`.
pub(crate) struct Pair {
    pub(crate) key: Ident,
    pub(crate) value: Expr,
}

impl Pair {
    /// Parses a pair; a key without a value is answered with the example.
    pub(crate) fn parse(input: ParseStream<'_>, known: &[Known]) -> Result<Self> {
        let key = input.call(Ident::parse_any)?;
        let Some((_, example)) = known.iter().find(|(name, _)| key == name) else {
            return Err(unknown(&key, known));
        };
        let takes = |span| Error::new(span, format!("`{key}` takes a value: `{example}`"));
        input.parse::<Token![=]>().map_err(|_| takes(key.span()))?;
        if input.is_empty() || input.peek(Token![,]) {
            return Err(takes(key.span()));
        }
        let value = input.parse().map_err(|error| takes(error.span()))?;
        Ok(Self { key, value })
    }

    /// The value as a text in quotes.
    pub(crate) fn text(&self, known: &[Known]) -> Result<LitStr> {
        match &self.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.clone()),
            other => Err(Error::new_spanned(other, self.wants("a text in quotes", known))),
        }
    }

    /// The value as a whole number.
    pub(crate) fn number(&self, known: &[Known]) -> Result<LitInt> {
        match &self.value {
            Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => Ok(number.clone()),
            other => Err(Error::new_spanned(other, self.wants("a whole number", known))),
        }
    }

    /// The value as a path.
    pub(crate) fn path(&self, known: &[Known]) -> Result<Path> {
        match &self.value {
            Expr::Path(path) => Ok(path.path.clone()),
            other => Err(Error::new_spanned(other, self.wants("a path", known))),
        }
    }

    fn wants(&self, what: &str, known: &[Known]) -> String {
        let example = known.iter().find(|(name, _)| self.key == name).map_or("", |(_, example)| example);
        format!("`{}` takes {what}: `{example}`", self.key)
    }
}

/// Refuses a key, and lists those that exist.
pub(crate) fn unknown(key: &Ident, known: &[Known]) -> Error {
    let names = list(known.iter().map(|(name, _)| *name));
    Error::new_spanned(key, format!("unknown option `{key}`: the options are {names}"))
}

/// Names as a sentence lists them.
pub(crate) fn list(names: impl Iterator<Item = impl std::fmt::Display>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Parses entries separated by commas. What is wrong in one is noted, and ends its list: where the next begins is a guess.
pub(crate) fn entries<T>(
    tokens: TokenStream,
    refusals: &mut Refusals,
    parse: impl Fn(ParseStream<'_>) -> Result<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    let all = |input: ParseStream<'_>| -> Result<()> {
        while !input.is_empty() {
            match parse(input) {
                Ok(entry) => found.push(entry),
                Err(error) => {
                    // the rest is read, so that the refusal is this one and not "unexpected token"
                    input.parse::<TokenStream>()?;
                    return Err(error);
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    };
    refusals.keep(all.parse2(tokens));
    found
}

/// A limit in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    /// Reads `"250ms"`, `"5s"`, `"2m"`, `"1h"`.
    pub(crate) fn read(text: &LitStr) -> Result<Self> {
        let refuse = |what: &str| {
            let form = "write a whole number and `ms`, `s`, `m` or `h`: `timeout = \"5s\"`";
            Error::new_spanned(text, format!("{what}: {form}"))
        };
        let value = text.value();
        let value = value.trim();
        let (digits, unit) = value.split_at(value.bytes().take_while(u8::is_ascii_digit).count());
        let millis = match unit.trim_start() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" if !digits.is_empty() => return Err(refuse("a timeout needs a unit")),
            _ => return Err(refuse(&format!("`{value}` is not a timeout"))),
        };
        if digits.is_empty() {
            return Err(refuse(&format!("`{value}` is not a timeout")));
        }
        match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(millis)) {
            Some(0) => Err(refuse("a timeout of nothing would fail every attempt")),
            Some(total) => Ok(Self(total)),
            None => Err(refuse("this timeout is too long")),
        }
    }
}

/// Where generated code finds what it names, as tokens at `place`: a path of which only a part is there is shown whole.
pub(crate) fn private(face: Option<&Path>, place: Span) -> TokenStream {
    let respan = |mut token: TokenTree| {
        token.set_span(place);
        token
    };
    let face = face.map_or_else(|| quote!(::steadfast), Path::to_token_stream);
    quote!(#face::__private).into_iter().map(respan).collect()
}

/// A span that shows the user's tokens and is still known as generated, so that lints leave it alone.
pub(crate) fn shown(tokens: &impl Spanned) -> Span {
    Span::call_site().located_at(tokens.span())
}
