//! Certificates of an authority that nobody else trusts, made by the program `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::TestbedError;
use crate::server::run_command;

/// Whether a server with TLS wants to see a certificate of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It asks for none.
    Unasked,
    /// It turns away whoever has none of its own authority.
    Required,
}

impl ClientCertificates {
    /// As Redis has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unasked => "no",
            Self::Required => "yes",
        }
    }
}

/// An authority, a server's certificate for 127.0.0.1, and a client's; PEM files in one folder.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them in `folder`, which must exist; they are valid for a day.
    pub(crate) fn make(folder: &Path) -> Result<Self, TestbedError> {
        let made = Self { folder: folder.to_owned() };
        made.request("ca", &["-addext", "basicConstraints=critical,CA:TRUE"])?;
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
        made.request("server", &[&signed[..], &["-addext", "subjectAltName=IP:127.0.0.1"]].concat())?;
        made.request("client", &[&signed[..], &["-addext", "subjectAltName=DNS:client"]].concat())?;
        Ok(made)
    }

    /// The authority's certificate.
    pub fn authority(&self) -> Result<Vec<u8>, TestbedError> {
        self.read("ca.pem")
    }

    /// The client's certificate.
    pub fn client(&self) -> Result<Vec<u8>, TestbedError> {
        self.read("client.pem")
    }

    /// The key of the client's certificate.
    pub fn client_key(&self) -> Result<Vec<u8>, TestbedError> {
        self.read("client.key")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, TestbedError> {
        let path = self.path(name);
        fs::read(&path).map_err(|source| TestbedError::io(format!("reading {}", path.display()), source))
    }

    fn request(&self, name: &str, more: &[&str]) -> Result<(), TestbedError> {
        let mut openssl = Command::new("openssl");
        openssl
            .current_dir(&self.folder)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "1", "-subj", &format!("/CN=steadfast {name}")])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
            .args(more);
        run_command(&mut openssl).map(drop)
    }
}
