//! `#[handler]` on a free function: makes it a handler of one route.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{
    Attribute, DeriveInput, Error, FnArg, Generics, Item, ItemFn, Meta, Path, Result, ReturnType, Signature,
    Type, parse_quote,
};

use crate::attr::{Refusals, private, shown};
use crate::handler::{Options, implementation};

const FORM: &str = "async fn on_order(order: OrderPlaced, cx: &Context) -> Result<(), Failure>";

pub(crate) fn handler(args: TokenStream, item: TokenStream) -> TokenStream {
    match syn::parse2::<Item>(item.clone()) {
        Ok(Item::Fn(function)) => expand(args, &function),
        Ok(Item::Struct(item)) => on_type(&args, item.into()),
        Ok(Item::Enum(item)) => on_type(&args, item.into()),
        Ok(_) => {
            let error = Error::new(Span::call_site(), format!("`#[handler]` is for a function: `{FORM}`"));
            let error = error.to_compile_error();
            quote!(#error #item)
        }
        // what the compiler itself has to say of such a function is the better text
        Err(_) => item,
    }
}

/// The attribute of the derive, which is below or missing. It is put in its place, so that there is one error.
fn on_type(args: &TokenStream, mut item: DeriveInput) -> TokenStream {
    let derives = |attribute: &Attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("derive") => {
            list.tokens.clone().into_iter().any(|token| token.to_string() == "Handler")
        }
        _ => false,
    };
    let what = if item.attrs.iter().any(derives) {
        item.attrs.push(parse_quote!(#[handler(#args)]));
        "put `#[derive(Handler)]` above `#[handler(..)]`"
    } else {
        "add `#[derive(Handler)]` above `#[handler(..)]`"
    };
    let error = Error::new(Span::call_site(), what).to_compile_error();
    quote!(#error #item)
}

fn expand(args: TokenStream, function: &ItemFn) -> TokenStream {
    let mut refusals = Refusals::default();
    let mut options = Options::default();
    options.read(args, &mut refusals);
    if let Some(ty) = options.types.first() {
        let what = "the function's first argument says the message type: leave it out here";
        refusals.push(Error::new_spanned(ty, what));
        options.types.clear();
    }
    if let Some(receiver) = function.sig.receiver() {
        let what = "`#[handler]` is for a free function: for one with state, put `#[derive(Handler)]` and \
                    `#[handler(OrderPlaced)]` on the struct, and write `impl Handle<OrderPlaced>` for it";
        refusals.push(Error::new_spanned(receiver, what));
        return quote!(#refusals #function);
    }
    check(&function.sig, &mut refusals);
    let handle = refusals.keep(Arguments::read(&function.sig)).map(|arguments| {
        options.types.push(arguments.message.clone());
        handle(function, &arguments, &options)
    });
    if !refusals.is_empty() {
        // a handler without routes, so that where it is given to a consumer there is no second error
        options.types.clear();
    }
    let handle = refusals.is_empty().then_some(handle);
    let named = named(function, &options);
    let (ident, cfg) = (&function.sig.ident, conditions(function));
    let implementation = implementation(ident, &Generics::default(), &options);
    quote!(#refusals #named #handle #(#cfg)* #implementation)
}

/// All that is said of the function before its arguments.
fn check(signature: &Signature, refusals: &mut Refusals) {
    if signature.asyncness.is_none() {
        let what = format!("a handler is async: write `async fn {}`", signature.ident);
        refusals.push(Error::new_spanned(signature.fn_token, what));
    }
    if let Some(word) = &signature.unsafety {
        refusals.push(Error::new_spanned(word, "a handler is called by safe code: remove `unsafe`"));
    }
    if !signature.generics.params.is_empty() {
        let what = "a handler function is of one message type, so it cannot be generic: name the type, or use a \
                    struct with `#[derive(Handler)]`";
        refusals.push(Error::new_spanned(&signature.generics.params, what));
    }
    if matches!(signature.output, ReturnType::Default) {
        let what = "a handler says how it went: add `-> Result<(), Failure>`, and end with `Ok(())`";
        refusals.push(Error::new(signature.paren_token.span.close(), what));
    }
}

/// What the function takes.
struct Arguments {
    message: Type,
    context: Option<Type>,
}

impl Arguments {
    fn read(signature: &Signature) -> Result<Self> {
        let types: Vec<&Type> = signature.inputs.iter().filter_map(typed).collect();
        let (first, second) = match types.as_slice() {
            [] => {
                return Err(Error::new(
                    signature.paren_token.span.join(),
                    format!("a handler takes its message: `{FORM}`"),
                ));
            }
            [first] => (*first, None),
            [first, second] => (*first, Some(*second)),
            [_, _, third, ..] => {
                let what = "a handler takes its message and `&Context`, no more: what else it needs are the fields \
                            of a struct with `#[derive(Handler)]`";
                return Err(Error::new_spanned(third, what));
            }
        };
        Ok(Self { message: message(first, second)?, context: second.map(context).transpose()? })
    }
}

fn typed(argument: &FnArg) -> Option<&Type> {
    match argument {
        FnArg::Typed(typed) => Some(&typed.ty),
        FnArg::Receiver(_) => None,
    }
}

fn message(first: &Type, second: Option<&Type>) -> Result<Type> {
    let what = match first {
        Type::Reference(reference) if is_context(&reference.elem) && second.is_some() => {
            "the message comes first, `&Context` second".to_owned()
        }
        Type::Reference(reference) if is_context(&reference.elem) => {
            format!("a handler takes its message, before `&Context`: `{FORM}`")
        }
        Type::Reference(reference) => {
            let owned = reference.elem.to_token_stream();
            format!("a handler owns its message: take it by value, `{owned}` without the `&`")
        }
        Type::ImplTrait(_) => "a handler function is of one message type: name it here".to_owned(),
        owned => return Ok(owned.clone()),
    };
    Err(Error::new_spanned(first, what))
}

fn context(second: &Type) -> Result<Type> {
    match second {
        Type::Reference(reference) if reference.mutability.is_none() => Ok((*reference.elem).clone()),
        other => Err(Error::new_spanned(other, "the second argument of a handler is `&Context`")),
    }
}

fn is_context(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Context"))
}

/// The unit struct that takes the function's name, docs and visibility.
fn named(function: &ItemFn, options: &Options) -> TokenStream {
    let private = private(options.face.as_ref(), Span::call_site());
    let (vis, ident) = (&function.vis, &function.sig.ident);
    let attributes = function.attrs.iter().filter(|attribute| place(attribute) != Place::Function);
    quote! {
        #(#attributes)*
        #[allow(non_camel_case_types, reason = "named as the function that it was")]
        #[#private::derive(#private::Clone, #private::Copy, #private::Debug)]
        #vis struct #ident;
    }
}

/// The function itself, inside the method that calls it.
fn handle(function: &ItemFn, arguments: &Arguments, options: &Options) -> TokenStream {
    let at = |place| private(options.face.as_ref(), place);
    let (signature, block, cfg) = (&function.sig, &function.block, conditions(function));
    let attributes = function.attrs.iter().filter(|attribute| place(attribute) != Place::Struct);
    let (ident, message) = (&signature.ident, &arguments.message);
    // the compiler's own errors about types and `Send` point to the user's types in place of the attribute
    let output = shown(&result_type(signature));
    let (cx, passed) = match &arguments.context {
        Some(ty) => {
            let private = at(shown(ty));
            (quote!(cx), quote_spanned!(shown(ty)=> , #private::context::<#ty>(cx)))
        }
        None => (quote!(cx), TokenStream::new()),
    };
    let private = at(output);
    let mut called = ident.clone();
    called.set_span(ident.span().located_at(output));
    let result =
        quote_spanned!(output=> #private::HandlerResult::reply(#called(message #passed).await, cx).await);
    let returned = quote_spanned!(output=> #private::Result<(), #private::Failure>);
    let private = at(shown(message));
    let handle = quote_spanned!(shown(message)=> #private::Handle<#message>);
    let private = at(Span::call_site());
    let on_dead = options.on_dead.as_ref().map(|called| on_dead(called, message, options));
    quote! {
        #(#cfg)*
        impl #handle for #ident {
            async fn handle(&self, message: #message, #cx: &#private::Context) -> #returned {
                #(#attributes)*
                #[allow(clippy::unused_async, reason = "a handler is async, whether it waits or not")]
                #signature #block
                #result
            }
            #on_dead
        }
    }
}

/// The method that calls the function for dead letters.
fn on_dead(called: &Path, message: &Type, options: &Options) -> TokenStream {
    let private = private(options.face.as_ref(), Span::call_site());
    let result = quote_spanned!(shown(called)=> #called(message, failure, cx).await);
    quote! {
        async fn on_dead(
            &self,
            message: #message,
            failure: &#private::Failure,
            cx: &#private::Context,
        ) -> #private::Result<(), #private::Failure> {
            #result
        }
    }
}

fn result_type(signature: &Signature) -> TokenStream {
    match &signature.output {
        ReturnType::Type(_, ty) => ty.to_token_stream(),
        ReturnType::Default => signature.ident.to_token_stream(),
    }
}

/// Where an attribute of the function belongs.
#[derive(PartialEq, Eq)]
enum Place {
    Struct,
    Function,
    Both,
}

fn place(attribute: &Attribute) -> Place {
    let is = |name: &str| attribute.path().is_ident(name);
    if ["doc", "deprecated", "cfg"].into_iter().any(is) {
        Place::Struct
    } else if ["allow", "warn", "deny", "forbid"].into_iter().any(is) {
        Place::Both
    } else {
        Place::Function
    }
}

/// What has to hold for the function to be there.
fn conditions(function: &ItemFn) -> Vec<&Attribute> {
    function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
}
