//! How to connect.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "tls")]
use redis::{ClientTlsConfig, TlsCertificates};
use tokio::sync::Semaphore;

/// How to connect: the URL and the deadlines.
///
/// `redis://[user[:password]@]host[:port][/database][?protocol=resp3]`, and `rediss://` for TLS with the feature `tls`.
/// The default port is 6379, the default database 0.
///
/// `redis+sentinel://[user[:password]@]host[:port],host[:port]/master[/database]` asks the sentinels at these addresses
/// (default port 26379) for the server that is the master of that name (`SENTINEL GET-MASTER-ADDR-BY-NAME`), and takes it
/// only if it says so itself (`ROLE`). They are asked for each connection that is opened, all at once. User, password and
/// database are the server's; sentinels that want a password of their own get it from the query,
/// `?sentinel_user=watch&sentinel_password=secret`, percent-encoded, the user only where there is one. With `rediss+sentinel://` sentinels
/// and servers are met by TLS.
///
/// `redis+cluster://[user[:password]@]host[:port],host[:port]` meets a cluster at any of these nodes (default port 6379), asks them
/// where each hash slot is (`CLUSTER SLOTS`), and follows the redirections of nodes that know better (`MOVED`, `ASK`). There is
/// one connection for commands and one for publishing to each node. With `rediss+cluster://` all nodes are met by TLS.
///
/// ```
/// use std::time::Duration;
/// use steadfast_streams::Options;
///
/// let options = Options::new("redis://app:secret@cache.example/2").command_timeout(Duration::from_secs(3));
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) url: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) command_timeout: Duration,
    pub(crate) publish_deadline: Duration,
    pub(crate) publish_window: usize,
    #[cfg(feature = "tls")]
    certificates: Option<TlsCertificates>,
}

impl Options {
    /// This URL, and the defaults for all else.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            publish_deadline: Duration::from_secs(30),
            publish_window: 2048,
            #[cfg(feature = "tls")]
            certificates: None,
        }
    }

    /// Longest wait for a connection, its handshake included. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Longest wait for the answer to a command; a blocking read may take its `BLOCK` on top. Default 10 s.
    #[must_use]
    pub fn command_timeout(mut self, limit: Duration) -> Self {
        self.command_timeout = limit;
        self
    }

    /// Longest wait for a published message to be stored; past it the message's fate is unknown. Default 30 s.
    #[must_use]
    pub fn publish_deadline(mut self, limit: Duration) -> Self {
        self.publish_deadline = limit;
        self
    }

    /// Most publishes of one publisher that may be unanswered at once; more wait. At least 1, default 2,048.
    #[must_use]
    pub fn publish_window(mut self, window: usize) -> Self {
        self.publish_window = window.clamp(1, Semaphore::MAX_PERMITS);
        self
    }
}

#[cfg(feature = "tls")]
impl Options {
    /// Trusts servers with a certificate of this authority, and no others. PEM, one or more. Default: those that the
    /// system trusts. The URL must be for TLS, otherwise connecting fails with `InvalidUrl`.
    ///
    /// ```no_run
    /// # fn main() -> std::io::Result<()> {
    /// use steadfast_streams::Options;
    ///
    /// let options = Options::new("rediss://cache.example")
    ///     .certificate_authority(std::fs::read("ca.pem")?)
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn certificate_authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates_mut().root_cert = Some(pem.into());
        self
    }

    /// Shows this certificate to the server, which may demand one (`tls-auth-clients`). Both PEM: the chain, our own
    /// first, and its key. Default: none.
    #[must_use]
    pub fn client_certificate(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        let own = ClientTlsConfig { client_cert: chain.into(), client_key: key.into() };
        self.certificates_mut().client_tls = Some(own);
        self
    }

    pub(crate) fn certificates(&self) -> Option<TlsCertificates> {
        self.certificates.clone()
    }

    fn certificates_mut(&mut self) -> &mut TlsCertificates {
        self.certificates.get_or_insert(TlsCertificates { client_tls: None, root_cert: None })
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // the URL may carry a password
        f.debug_struct("Options")
            .field("connect_timeout", &self.connect_timeout)
            .field("command_timeout", &self.command_timeout)
            .field("publish_deadline", &self.publish_deadline)
            .field("publish_window", &self.publish_window)
            .finish_non_exhaustive()
    }
}
