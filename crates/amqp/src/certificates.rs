//! Whom to trust and what to show where the URL asks for TLS: PEM, kept as it was given, and shown nowhere.

use lapin::tcp::{Identity, TLSConfig};
use steadfast_core::ConnectError;

#[cfg(feature = "tls")]
use crate::options::Options;
use crate::options::invalid;

/// What the options name of it.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    authority: Option<Vec<u8>>,
    /// The chain, our own certificate first, and its key.
    own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Says what cannot work before anything is tried.
    pub(crate) fn check(&self, tls: bool) -> Result<(), ConnectError> {
        if self.authority.is_none() && self.own.is_none() {
            return Ok(());
        }
        if !tls {
            return Err(invalid(
                "read the settings of the broker: certificates are given, but the URL is not for TLS; begin it with amqps://",
            ));
        }
        // text without any certificate would be taken for a list of none
        let lacks = |pem: &[u8], word: &str| !std::str::from_utf8(pem).is_ok_and(|pem| pem.contains(word));
        if self.authority.as_deref().is_some_and(|pem| lacks(pem, CERTIFICATE)) {
            return Err(invalid("read the settings of the broker: the authority's certificate is not PEM"));
        }
        if self.own.as_ref().is_some_and(|(chain, key)| lacks(chain, CERTIFICATE) || lacks(key, KEY)) {
            return Err(invalid(
                "read the settings of the broker: the client's certificate or its key is not PEM",
            ));
        }
        Ok(())
    }

    pub(crate) fn config(&self) -> TLSConfig<'_, '_, '_> {
        TLSConfig {
            identity: self.own.as_ref().map(|(pem, key)| Identity::PKCS8 { pem, key }),
            cert_chain: self.authority.as_deref().and_then(|pem| std::str::from_utf8(pem).ok()),
        }
    }
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const KEY: &str = "PRIVATE KEY-----";

#[cfg(feature = "tls")]
impl Options {
    /// Trusts servers with a certificate of this authority, beside those that the system trusts. PEM, one or more. The URL
    /// must be `amqps://`, otherwise connecting fails with `InvalidUrl`.
    ///
    /// ```no_run
    /// use steadfast_amqp::Options;
    ///
    /// let options = Options::new("amqps://app:secret@rabbit.local/shop")?
    ///     .certificate_authority(std::fs::read("ca.pem")?)
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn certificate_authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.authority = Some(pem.into());
        self
    }

    /// Shows this certificate to the server, which may demand one (`ssl_options.fail_if_no_peer_cert`). Both PEM: the chain, our
    /// own first, and its key. Default: none. User and password are sent all the same.
    #[must_use]
    pub fn client_certificate(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificates.own = Some((chain.into(), key.into()));
        self
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn certificates_need_tls_and_must_be_pem() {
        let pem = format!("{CERTIFICATE}\nhunter2");
        let plain = Options::new("amqp://h").expect("valid").certificate_authority(pem.clone());
        let error = plain.check().expect_err("no TLS");
        assert!(error.to_string().contains("amqps://"), "{error}");
        let tls = || Options::new("amqps://h").expect("valid");
        assert!(tls().certificate_authority(pem.clone()).check().is_ok());
        for bad in [
            tls().certificate_authority("hunter2"),
            tls().client_certificate(pem.clone(), "hunter2"),
            tls().client_certificate("hunter2", format!("-----BEGIN {KEY}")),
        ] {
            let error = bad.check().expect_err("no PEM");
            assert!(!format!("{error} {error:?} {bad:?}").contains("hunter2"), "{error:?}");
        }
    }
}
