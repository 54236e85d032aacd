//! `derive(Message)`: a type's name, version, key and destination, from its attribute.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{Data, DeriveInput, Error, Ident, LitStr, Meta, Path, Result};

use crate::attr::{Known, Pair, Refusals, entries, private, shown};
use crate::key::Key;

const KNOWN: &[Known] = &[
    ("name", "name = \"order.placed\""),
    ("version", "version = 2"),
    ("key", "key = customer"),
    ("to", "to = \"orders\""),
    ("crate", "crate = my_crate::steadfast"),
];

/// AMQP carries the name in a short string.
const LONGEST_NAME: usize = 255;

#[derive(Default)]
struct Options {
    name: Option<LitStr>,
    version: Option<u32>,
    key: Option<Key>,
    to: Option<LitStr>,
    face: Option<Path>,
}

pub(crate) fn derive(input: &DeriveInput) -> TokenStream {
    let mut refusals = Refusals::default();
    if refusals.keep(concrete(input)).is_none() {
        return quote!(#refusals);
    }
    let options = options(input, &mut refusals);
    let implementation = implementation(&input.ident, &options);
    quote!(#refusals #implementation)
}

/// A type that has one name, and owns what it carries.
fn concrete(input: &DeriveInput) -> Result<()> {
    let generics = &input.generics;
    if generics.lifetimes().next().is_some() {
        let what = "a message owns its data, for it outlives the bytes it came in: replace the borrowed fields \
                    (`&str` by `String`) and remove the lifetime";
        return Err(Error::new_spanned(&generics.params, what));
    }
    if !generics.params.is_empty() {
        let what = "a message type has one name on the wire, so it cannot be generic: derive `Message` on a concrete \
                    type, or write `impl Message` for each one that is sent";
        return Err(Error::new_spanned(&generics.params, what));
    }
    if let Data::Union(union) = &input.data {
        return Err(Error::new_spanned(union.union_token, "a message is a struct or an enum"));
    }
    Ok(())
}

fn options(input: &DeriveInput, refusals: &mut Refusals) -> Options {
    let mut options = Options::default();
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("message")) {
        let Meta::List(list) = &attribute.meta else {
            let what = "the options stand in parentheses: `#[message(name = \"order.placed\")]`";
            refusals.push(Error::new_spanned(attribute, what));
            continue;
        };
        for pair in entries(list.tokens.clone(), refusals, |input| Pair::parse(input, KNOWN)) {
            option(&mut options, &pair, &input.data, refusals);
        }
    }
    options
}

fn option(options: &mut Options, pair: &Pair, data: &Data, refusals: &mut Refusals) {
    let key = &pair.key;
    match key.to_string().as_str() {
        "name" => refusals.set(&mut options.name, key, pair.text(KNOWN).and_then(name)),
        "version" => refusals.set(&mut options.version, key, version(pair)),
        "key" => refusals.set(&mut options.key, key, Key::read(data, &pair.value)),
        "to" => refusals.set(&mut options.to, key, pair.text(KNOWN).and_then(destination)),
        "crate" => refusals.set(&mut options.face, key, pair.path(KNOWN)),
        _ => refusals.push(crate::attr::unknown(key, KNOWN)),
    }
}

fn name(name: LitStr) -> Result<LitStr> {
    let value = name.value();
    let what = if value.is_empty() {
        "a message's name cannot be empty: leave `name` out for the type's own, or write one such as `order.placed`"
    } else if value.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        "a message's name has no white space: write it with dots, such as `order.placed`"
    } else if value.len() > LONGEST_NAME {
        "a message's name has at most 255 bytes, for RabbitMQ takes no more"
    } else {
        return Ok(name);
    };
    Err(Error::new_spanned(name, what))
}

fn version(pair: &Pair) -> Result<u32> {
    let number = pair.number(KNOWN)?;
    match number.base10_parse::<u32>() {
        Ok(0) => {
            Err(Error::new_spanned(number, "versions count from 1: write `version = 1`, or leave it out"))
        }
        Ok(version) => Ok(version),
        Err(_) => Err(Error::new_spanned(number, "a version is a number from 1 to 4294967295")),
    }
}

fn destination(to: LitStr) -> Result<LitStr> {
    if to.value().trim().is_empty() {
        let what = "`to` names the queue or stream that the message is published to; leave it out for the one named \
                    as the type";
        return Err(Error::new_spanned(to, what));
    }
    Ok(to)
}

fn implementation(ident: &Ident, options: &Options) -> TokenStream {
    let at = |place| private(options.face.as_ref(), place);
    let private = at(Span::call_site());
    let name = options.name.as_ref().map_or_else(|| dotted(ident), LitStr::value);
    let version = options.version.map(|version| quote!(const VERSION: #private::u32 = #version;));
    let to = options.to.as_ref().map(|to| {
        quote! {
            const DESTINATION: #private::Option<&'static #private::str> = #private::Option::Some(#to);
        }
    });
    let key = options.key.as_ref().map(|key| {
        let text = key.text(&at(key.shown));
        quote! {
            fn key(&self) -> #private::Option<#private::Cow<'_, #private::str>> {
                #text
            }
        }
    });
    let body = at(shown(ident));
    let body = quote_spanned!(shown(ident)=> #ident: #body::Body);
    quote! {
        // before the impl, so that its sentence comes before serde's
        const _: () = {
            fn _check()
            where
                #body,
            {
            }
        };

        #[automatically_derived]
        impl #private::Message for #ident {
            const NAME: &'static #private::str = #name;
            #version
            #to
            #key
        }
    }
}

/// `OrderPlaced` as `order.placed`, `HTTPRequest_v2` as `http.request.v2`.
fn dotted(ident: &Ident) -> String {
    let letters: Vec<char> = ident.unraw().to_string().chars().collect();
    let mut name = String::new();
    for (at, &letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| letters.get(at));
        let after = letters.get(at + 1);
        let begins = letter.is_uppercase()
            && before.is_some_and(|before| {
                !before.is_uppercase() || after.is_some_and(|next| next.is_lowercase())
            });
        if (begins || letter == '_') && !name.is_empty() && !name.ends_with('.') {
            name.push('.');
        }
        if letter != '_' {
            name.extend(letter.to_lowercase());
        }
    }
    name.trim_end_matches('.').to_owned()
}
