//! URL and settings. Credentials are read here and shown nowhere.

use std::fmt;
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use steadfast_core::{ConnectError, ConnectErrorKind};
use url::Url;

use crate::certificates::Certificates;

/// How to reach a RabbitMQ server, and how patient to be with it.
///
/// The URL is `amqp://user:password@host:port/vhost?heartbeat=10`; each part but the host may be left out. Left out,
/// user and password are `guest`, the port is 5672 (5671 for `amqps`), and the virtual host is `/`. An empty path
/// (`amqp://host/`) means the virtual host `/` as well. Characters that have a meaning in URLs are percent-encoded.
///
/// | parameter | setting | default |
/// |---|---|---|
/// | `heartbeat` | [`heartbeat`](Self::heartbeat), seconds | 10 |
/// | `connection_timeout` | [`connect_timeout`](Self::connect_timeout), milliseconds | 5,000 |
/// | `name` | [`connection_name`](Self::connection_name) | `steadfast` |
/// | `frame_max` | largest frame to agree on, bytes | as the server says |
/// | `channel_max` | most channels to agree on | as the server says |
///
/// ```
/// use std::time::Duration;
/// use steadfast_amqp::Options;
///
/// let options = Options::new("amqp://app:secret@rabbit.local/shop")?
///     .connection_name("billing")
///     .publish_deadline(Duration::from_secs(10));
/// assert_eq!(options.to_string(), "amqp://rabbit.local:5672/shop");
/// assert!(!format!("{options:?}").contains("secret"));
/// # Ok::<_, steadfast_core::ConnectError>(())
/// ```
#[derive(Clone)]
pub struct Options {
    uri: AMQPUri,
    connect_timeout: Duration,
    heartbeat: Duration,
    name: String,
    publish_deadline: Duration,
    publish_window: usize,
    consumer_timeout: Duration,
    passive: bool,
    /// Tried after the one of the URL, in order.
    others: Vec<(String, u16)>,
    pub(crate) certificates: Certificates,
}

const KNOWN: &str = "`heartbeat`, `connection_timeout`, `name`, `frame_max` and `channel_max`";

impl Options {
    /// Reads a URL. Everything that is not in it is at its default.
    ///
    /// Fails with [`ConnectErrorKind::InvalidUrl`] where the URL says something that is not understood, including a
    /// parameter that is not known.
    pub fn new(url: &str) -> Result<Self, ConnectError> {
        let url =
            Url::parse(url).map_err(|error| invalid("read the URL of the broker").with_source(error))?;
        let scheme = scheme(&url)?;
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid("read the URL of the broker: it names no host"))?;
        let mut options = Self {
            uri: AMQPUri {
                authority: AMQPAuthority {
                    userinfo: credentials(&url)?,
                    host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
                    port: url.port().unwrap_or_else(|| scheme.default_port()),
                },
                scheme,
                vhost: vhost(&url)?,
                query: AMQPQueryString::default(),
            },
            connect_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            name: "steadfast".to_owned(),
            publish_deadline: Duration::from_secs(30),
            publish_window: 2048,
            consumer_timeout: Duration::from_secs(30 * 60),
            passive: false,
            others: Vec::new(),
            certificates: Certificates::default(),
        };
        for (name, value) in url.query_pairs() {
            options.parameter(&name, &value)?;
        }
        options.check()?;
        Ok(options)
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), ConnectError> {
        match name {
            "heartbeat" => self.heartbeat = Duration::from_secs(number::<u16>(name, value)?.into()),
            "connection_timeout" => self.connect_timeout = Duration::from_millis(number(name, value)?),
            "frame_max" => self.uri.query.frame_max = Some(number(name, value)?),
            "channel_max" => self.uri.query.channel_max = Some(number(name, value)?),
            "name" => value.clone_into(&mut self.name),
            _ => {
                let what =
                    format!("read the URL of the broker: unknown parameter `{name}`, known are {KNOWN}");
                return Err(invalid(what));
            }
        }
        Ok(())
    }

    /// How long connecting may take, handshake included, and each request to the broker after it. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How often each side shows that it is alive, in whole seconds from 1 to 65,535. A peer that is silent for twice as
    /// long is given up. Default 10 s. It cannot be switched off: a connection without it never notices a dead peer.
    #[must_use]
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval;
        self
    }

    /// What the broker lists the connections as, followed by what each is for. Default `steadfast`.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long a publish may take from the call to the broker's confirmation. Default 30 s.
    #[must_use]
    pub fn publish_deadline(mut self, limit: Duration) -> Self {
        self.publish_deadline = limit;
        self
    }

    /// Most publishes of one publisher that may be unconfirmed at once; more wait. At least 1, default 2,048.
    #[must_use]
    pub fn publish_window(mut self, window: usize) -> Self {
        self.publish_window = window.max(1);
        self
    }

    /// How long the broker lets a delivery be unsettled before it closes the channel under it (`consumer_timeout` in
    /// `rabbitmq.conf`). When four fifths of it are over the event `message.overdue` says so. It does not change the
    /// broker's setting. Default 30 min, as the broker's own; zero is never.
    #[must_use]
    pub fn consumer_timeout(mut self, limit: Duration) -> Self {
        self.consumer_timeout = limit;
        self
    }

    /// Another node of the same cluster, tried where those before it cannot be reached: with the same user, virtual host
    /// and settings. Each has [`connect_timeout`](Self::connect_timeout) to answer. A node that answers and refuses ends
    /// the search. Every new connection begins with the URL's own node. Default: none.
    ///
    /// ```
    /// # use steadfast_amqp::Options;
    /// let options = Options::new("amqp://app:secret@rabbit-1/shop")?.or_node("rabbit-2", 5672).or_node("rabbit-3", 5672);
    /// # Ok::<_, steadfast_core::ConnectError>(())
    /// ```
    #[must_use]
    pub fn or_node(mut self, host: impl Into<String>, port: u16) -> Self {
        self.others.push((host.into(), port));
        self
    }

    /// Declares nothing: queues, exchanges, and the queues that retries wait in, belong to their operators and must be
    /// there. What is missing is an error that names it. Retry queues are called as
    /// `docs/operations.md` says. Default: what is needed is declared.
    #[must_use]
    pub fn passive(mut self) -> Self {
        self.passive = true;
        self
    }

    /// Says what cannot work before anything is tried.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        if self.heartbeat.as_secs() == 0 || self.heartbeat.as_secs() > u64::from(u16::MAX) {
            return Err(invalid(
                "read the settings of the broker: heartbeat must be from 1 to 65,535 s, because a connection without \
                 heartbeats never notices that its peer is dead",
            ));
        }
        if self.connect_timeout.is_zero() || self.publish_deadline.is_zero() {
            return Err(invalid("read the settings of the broker: a timeout of zero leaves no time at all"));
        }
        if self.uri.scheme == AMQPScheme::AMQPS && !cfg!(feature = "tls") {
            return Err(invalid(
                "read the URL of the broker: `amqps` needs the feature `tls`, which this program is built without",
            ));
        }
        self.certificates.check(self.is_tls())
    }

    /// The address for lapin, heartbeat included.
    pub(crate) fn uri(&self) -> AMQPUri {
        let mut uri = self.uri.clone();
        uri.query.heartbeat = Some(u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX));
        uri
    }

    /// How many nodes there are to try.
    pub(crate) fn addresses(&self) -> usize {
        1 + self.others.len()
    }

    /// One of them; the URL's own is the first.
    pub(crate) fn host(&self, address: usize) -> (&str, u16) {
        match address.checked_sub(1).and_then(|at| self.others.get(at)) {
            Some((host, port)) => (host, *port),
            None => (&self.uri.authority.host, self.uri.authority.port),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.connect_timeout
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.publish_deadline
    }

    pub(crate) fn unsettled_limit(&self) -> Duration {
        self.consumer_timeout
    }

    pub(crate) fn is_passive(&self) -> bool {
        self.passive
    }

    pub(crate) fn window(&self) -> usize {
        self.publish_window
    }
}

/// The address, without credentials.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authority, vhost) = (&self.uri.authority, self.uri.vhost.trim_start_matches('/'));
        write!(f, "{}://{}:{}/{vhost}", self.uri.scheme, authority.host, authority.port)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("broker", &self.to_string())
            .field("connect_timeout", &self.connect_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("name", &self.name)
            .field("publish_deadline", &self.publish_deadline)
            .field("publish_window", &self.publish_window)
            .field("consumer_timeout", &self.consumer_timeout)
            .field("passive", &self.passive)
            .field("others", &self.others)
            .finish_non_exhaustive()
    }
}

fn scheme(url: &Url) -> Result<AMQPScheme, ConnectError> {
    match url.scheme() {
        "amqp" => Ok(AMQPScheme::AMQP),
        "amqps" => Ok(AMQPScheme::AMQPS),
        other => {
            let what = format!("read the URL of the broker: `{other}` is neither `amqp` nor `amqps`");
            Err(invalid(what))
        }
    }
}

fn credentials(url: &Url) -> Result<AMQPUserInfo, ConnectError> {
    let username = match url.username() {
        "" => "guest".to_owned(),
        name => decoded(name, "user name")?,
    };
    let password = url.password().map_or_else(|| Ok("guest".to_owned()), |word| decoded(word, "password"))?;
    Ok(AMQPUserInfo { username, password })
}

fn vhost(url: &Url) -> Result<String, ConnectError> {
    match url.path().trim_start_matches('/') {
        "" => Ok("/".to_owned()),
        path if path.contains('/') => {
            Err(invalid("read the URL of the broker: a `/` within the virtual host must be written `%2f`"))
        }
        path => decoded(path, "virtual host"),
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, ConnectError> {
    value.parse().map_err(|_| {
        invalid(format!(
            "read the URL of the broker: `{name}` must be a whole number in range, and is `{value}`"
        ))
    })
}

/// Takes the percent-encoding off; what it stands for is not repeated in the error.
fn decoded(text: &str, what: &str) -> Result<String, ConnectError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => rest.next().zip(rest.next()).and_then(|(high, low)| Some(hex(high)? << 4 | hex(low)?)),
            other => Some(other),
        };
        bytes.push(decoded.ok_or_else(|| badly_encoded(what))?);
    }
    String::from_utf8(bytes).map_err(|_| badly_encoded(what))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn badly_encoded(what: &str) -> ConnectError {
    invalid(format!("read the URL of the broker: the {what} is not percent-encoded UTF-8"))
}

pub(crate) fn invalid(what: impl Into<String>) -> ConnectError {
    ConnectError::new(ConnectErrorKind::InvalidUrl, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let error = Options::new(url).expect_err(url);
        assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        error.to_string()
    }

    #[test]
    fn defaults_fill_what_the_url_leaves_out() {
        for url in ["amqp://localhost", "amqp://localhost/", "amqp://guest:guest@localhost:5672/%2f"] {
            let uri = Options::new(url).expect(url).uri();
            assert_eq!((uri.vhost.as_str(), uri.authority.port), ("/", 5672), "{url}");
            assert_eq!(uri.authority.userinfo.password, "guest");
            assert_eq!(uri.query.heartbeat, Some(10));
        }
    }

    #[test]
    fn parts_are_decoded() {
        let uri = Options::new("amqp://a%40b:p%2Fq@[::1]:7/v%2fw?heartbeat=3").expect("parses").uri();
        assert_eq!((uri.authority.userinfo.username.as_str(), uri.vhost.as_str()), ("a@b", "v/w"));
        assert_eq!((uri.authority.host.as_str(), uri.query.heartbeat), ("::1", Some(3)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(refused("amqp://u:secret@h?heartbeat=0").contains("heartbeat"));
        assert!(refused("amqp://u:secret@h?hearbeat=1").contains("unknown parameter `hearbeat`"));
        assert!(refused("http://u:secret@h").contains("`http`"));
        assert!(refused("amqp://u:secret@h/a/b").contains("%2f"));
        assert!(refused("amqp://u:secret%zz@h").contains("password"));
        assert!(refused("amqp://u:secret@h?heartbeat=soon").contains("`soon`"));
        assert_eq!(cfg!(feature = "tls"), Options::new("amqps://h").is_ok());
    }
}
