//! What a user of the macros is told when something is wrong, and what must compile.
//!
//! The texts under `fail/` are read as a user reads them: the first line or its label says what to change.

#[test]
fn compile_errors_say_what_to_change() {
    let cases = trybuild::TestCases::new();
    cases.pass("pass/*.rs");
    cases.compile_fail("fail/*.rs");
}
