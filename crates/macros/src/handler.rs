//! `derive(Handler)`: a struct's routes, from its attribute.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::ParseStream;
use syn::{
    Attribute, Data, DeriveInput, Error, Generics, Ident, Meta, Path, Result, Token, Type, parse_quote,
};

use crate::attr::{Known, Millis, Pair, Refusals, entries, private, shown};

const KNOWN: &[Known] = &[
    ("timeout", "timeout = \"5s\""),
    ("on_dead", "on_dead = order_is_dead"),
    ("crate", "crate = my_crate::steadfast"),
];

/// What is true of a deployment, and so is the builder's.
const BUILDERS: &[&str] =
    &["source", "concurrency", "max_in_flight", "prefetch", "retry", "max_attempts", "dead_letter", "codec"];

const NO_TYPES: &str = "name at least one message type: `#[handler(OrderPlaced)]`";

/// What `#[handler(..)]` says.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) types: Vec<Type>,
    pub(crate) timeout: Option<Millis>,
    pub(crate) blocking: bool,
    /// The function that hears of dead letters.
    pub(crate) on_dead: Option<Path>,
    pub(crate) face: Option<Path>,
}

enum Entry {
    Option(Pair),
    Blocking,
    Message(Type),
}

impl Options {
    /// Reads what stands between the parentheses.
    pub(crate) fn read(&mut self, tokens: TokenStream, refusals: &mut Refusals) {
        for entry in entries(tokens, refusals, entry) {
            match entry {
                Entry::Message(ty) => self.message(ty, refusals),
                Entry::Option(pair) => self.option(&pair, refusals),
                Entry::Blocking => self.blocking = true,
            }
        }
    }

    fn message(&mut self, ty: Type, refusals: &mut Refusals) {
        let text = |ty: &Type| ty.to_token_stream().to_string();
        if self.types.iter().any(|known| text(known) == text(&ty)) {
            let what = format!("`{}` is named twice: keep one", text(&ty));
            refusals.push(Error::new_spanned(ty, what));
        } else {
            self.types.push(ty);
        }
    }

    fn option(&mut self, pair: &Pair, refusals: &mut Refusals) {
        let key = &pair.key;
        if key == "timeout" {
            let timeout = pair.text(KNOWN).and_then(|text| Millis::read(&text));
            refusals.set(&mut self.timeout, key, timeout);
        } else if key == "on_dead" {
            refusals.set(&mut self.on_dead, key, pair.path(KNOWN));
        } else {
            refusals.set(&mut self.face, key, pair.path(KNOWN));
        }
    }
}

fn entry(input: ParseStream<'_>) -> Result<Entry> {
    if input.peek(Ident::peek_any) {
        let word = input.fork().call(Ident::parse_any)?;
        let alone = |next: ParseStream<'_>| next.is_empty() || next.peek(Token![,]) || next.peek(Token![=]);
        let ahead = input.fork();
        ahead.call(Ident::parse_any)?;
        let known = KNOWN.iter().any(|(name, _)| word == name);
        if alone(&ahead) && (known || word == "blocking" || BUILDERS.iter().any(|name| word == name))
            || ahead.peek(Token![=])
        {
            return option(input, &word);
        }
    }
    let span = input.span();
    input.parse().map(Entry::Message).map_err(|_| {
        Error::new(span, "expected a message type, such as `OrderPlaced`, or `timeout = \"5s\"`")
    })
}

fn option(input: ParseStream<'_>, word: &Ident) -> Result<Entry> {
    if word == "blocking" {
        input.call(Ident::parse_any)?;
        if input.peek(Token![=]) {
            return Err(Error::new_spanned(
                word,
                "`blocking` takes no value: write `#[handler(OrderPlaced, blocking)]`",
            ));
        }
        return Ok(Entry::Blocking);
    }
    if BUILDERS.iter().any(|name| word == name) {
        let what = format!(
            "`{word}` may differ from one deployment to the next, so it is set where the consumer is built: see \
             `Consumer`"
        );
        return Err(Error::new_spanned(word, what));
    }
    Pair::parse(input, KNOWN).map(Entry::Option)
}

pub(crate) fn derive(input: &DeriveInput) -> TokenStream {
    let mut refusals = Refusals::default();
    let mut options = Options::default();
    if let Data::Union(union) = &input.data {
        refusals.push(Error::new_spanned(union.union_token, "a handler is a struct or an enum"));
    }
    if input.generics.lifetimes().next().is_some() {
        let what = "a handler lives as long as its consumer, so it cannot borrow: own the fields, or share them in an \
                    `Arc`, and remove the lifetime";
        refusals.push(Error::new_spanned(&input.generics.params, what));
    }
    if !refusals.is_empty() {
        return quote!(#refusals);
    }
    read_attributes(input, &mut options, &mut refusals);
    let implementation = implementation(&input.ident, &input.generics, &options);
    quote!(#refusals #implementation)
}

fn read_attributes(input: &DeriveInput, options: &mut Options, refusals: &mut Refusals) {
    let mut place: Box<dyn ToTokens> = Box::new(input.ident.clone());
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("handler")) {
        if stands_above_the_derive(attribute) {
            refusals.push(Error::new_spanned(attribute, "put `#[derive(Handler)]` above `#[handler(..)]`"));
        }
        place = Box::new(attribute.clone());
        match &attribute.meta {
            Meta::Path(_) => {}
            Meta::List(list) => options.read(list.tokens.clone(), refusals),
            Meta::NameValue(pair) => refusals.push(Error::new_spanned(pair, NO_TYPES)),
        }
    }
    if let Some(on_dead) = &options.on_dead {
        let what = "`on_dead` is for a function: a struct has it as a method, `async fn on_dead(&self, message: \
                    OrderPlaced, failure: &Failure, cx: &Context) -> Result<(), Failure>` in `impl Handle<OrderPlaced>`";
        refusals.push(Error::new_spanned(on_dead, what));
    }
    if options.types.is_empty() && refusals.is_empty() {
        refusals.push(Error::new_spanned(place, NO_TYPES));
    }
}

/// Where the attribute macro `handler` is imported too, an attribute above its derive is ambiguous to the compiler, which
/// says so without saying what to do.
fn stands_above_the_derive(attribute: &Attribute) -> bool {
    let derive = proc_macro::Span::call_site();
    let attribute = attribute.pound_token.span.unwrap();
    let place = |span: proc_macro::Span| (span.line(), span.column());
    attribute.file() == derive.file() && place(attribute) < place(derive)
}

/// The routes of `ident`, and its timeout.
pub(crate) fn implementation(ident: &Ident, generics: &Generics, options: &Options) -> TokenStream {
    let at = |place| private(options.face.as_ref(), place);
    let private = at(Span::call_site());
    let routes = options.types.iter().map(|ty| {
        let located = at(shown(ty));
        quote_spanned!(shown(ty)=> #located::Route::to::<#ty>())
    });
    let timeout = options.timeout.map(|Millis(millis)| {
        quote! {
            fn timeout() -> #private::Option<#private::Duration> {
                #private::Option::Some(#private::Duration::from_millis(#millis))
            }
        }
    });
    let blocking = options.blocking.then(|| {
        quote! {
            fn blocking() -> bool {
                true
            }
        }
    });
    let generics = bounded(ident, generics, options);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    quote! {
        impl #impl_generics #private::Handler for #ident #type_generics #where_clause {
            fn routes() -> #private::Vec<#private::Route<Self>> {
                #private::vec![#(#routes),*]
            }
            #timeout
            #blocking
        }
    }
}

/// A generic struct is a handler where it has the implementations, whose bounds are then not repeated here. Without
/// parameters the routes ask for them, so that a missing one is an error at once and not at the first use.
fn bounded(ident: &Ident, generics: &Generics, options: &Options) -> Generics {
    let mut bounded = generics.clone();
    if generics.params.is_empty() {
        return bounded;
    }
    let private = private(options.face.as_ref(), Span::call_site());
    let (_, type_generics, _) = generics.split_for_impl();
    let wanted = options.types.iter().map(|ty| parse_quote!(#ident #type_generics: #private::Handle<#ty>));
    let wanted: Vec<syn::WherePredicate> = wanted.collect();
    bounded.make_where_clause().predicates.extend(wanted);
    bounded
}
