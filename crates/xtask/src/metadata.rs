//! What `cargo metadata` says about the workspace.

use serde_json::Value;

use crate::runner::{Failure, Runner, line};

/// The packages of the workspace and all that they need, or only the workspace's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Resolved,
    Workspace,
}

/// The packages as cargo describes them.
pub(crate) fn packages(runner: &Runner, reach: Reach) -> Result<Vec<Value>, Failure> {
    let mut command = runner.cargo(&["metadata", "--format-version=1", "--quiet", "--all-features"]);
    if reach == Reach::Workspace {
        command.arg("--no-deps");
    }
    let said = runner.ask(&mut command)?;
    let failed = |what: &str| Failure::new(format!("`{}` {what}:\n{}", line(&command), said.err));
    if !said.success {
        return Err(failed("failed"));
    }
    let mut metadata: Value = serde_json::from_str(&said.out).map_err(|error| failed(&error.to_string()))?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => Err(failed("named no packages")),
    }
}

/// The names of the test targets of one package of the workspace.
pub(crate) fn tests_of(runner: &Runner, package: &str) -> Result<Vec<String>, Failure> {
    let packages = packages(runner, Reach::Workspace)?;
    let package = packages.into_iter().find(|candidate| candidate["name"] == package).unwrap_or_default();
    let targets = package["targets"].as_array().cloned().unwrap_or_default();
    Ok(targets
        .iter()
        .filter(|target| target["kind"] == serde_json::json!(["test"]))
        .filter_map(|target| Some(target["name"].as_str()?.to_owned()))
        .collect())
}
