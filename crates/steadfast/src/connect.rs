//! One URL, one broker.

use std::sync::Arc;

use steadfast_core::{Broker, ConnectError, ConnectErrorKind};

/// Connects to the broker that the URL names, and checks that it answers.
///
/// | URL | broker |
/// |---|---|
/// | `amqp://user:password@host:5672/vhost`, `amqps://…` (feature `tls`) | RabbitMQ |
/// | `redis://host:6379/0`, `rediss://…` (feature `tls`) | Redis Streams, Valkey |
/// | `redis+sentinel://host:26379,host:26379/master`, `rediss+sentinel://…` (feature `tls`) | the master, as the sentinels have it |
/// | `redis+cluster://host:6379,host:6379`, `rediss+cluster://…` (feature `tls`) | a cluster, met at any of its nodes |
/// | `embedded:`, `embedded:name` | a broker in this process, private or shared by name |
///
/// A broker that is not there is an error here. A service that starts before its broker wants [`connect_lazy`].
///
/// ```
/// # #[tokio::main] async fn main() -> steadfast::Result<()> {
/// # #[cfg(feature = "embedded")] {
/// let broker = steadfast::connect("embedded:").await?;
/// assert_eq!(broker.scheme(), "embedded");
/// # }
/// let error = steadfast::connect("kafka://localhost").await.unwrap_err();
/// assert!(error.to_string().contains("kafka"));
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Arc<dyn Broker>, ConnectError> {
    match family(url) {
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => Ok(steadfast_amqp::connect(url).await?),
        #[cfg(feature = "streams")]
        "redis" | "rediss" => Ok(steadfast_streams::connect(url).await?),
        other => local(other, url),
    }
}

/// The same without waiting for the broker: only the URL is checked. Consumers connect as they are supervised, and go on
/// trying for as long as the broker is away.
pub fn connect_lazy(url: &str) -> Result<Arc<dyn Broker>, ConnectError> {
    match family(url) {
        #[cfg(feature = "amqp")]
        "amqp" | "amqps" => Ok(steadfast_amqp::connect_lazy(url)?),
        #[cfg(feature = "streams")]
        "redis" | "rediss" => Ok(steadfast_streams::connect_lazy(url)?),
        other => local(other, url),
    }
}

/// The scheme without the way to the servers, which is `+sentinel` or `+cluster`.
fn family(url: &str) -> &str {
    url.split([':', '+']).next().unwrap_or_default()
}

fn local(scheme: &str, url: &str) -> Result<Arc<dyn Broker>, ConnectError> {
    #[cfg(feature = "embedded")]
    if scheme == "embedded" {
        return Ok(steadfast_embedded::connect_lazy(url)?);
    }
    let feature = match scheme {
        "amqp" | "amqps" => Some("amqp"),
        "redis" | "rediss" => Some("streams"),
        "embedded" => Some("embedded"),
        _ => None,
    };
    // an URL without a scheme may be a password: only a scheme is ever shown
    let shown = if url.contains(':') { scheme } else { "" };
    let what = match feature {
        Some(feature) => {
            format!("connect to a broker: scheme `{shown}` needs the feature `{feature}` of `steadfast`")
        }
        None => {
            format!(
                "connect to a broker: unknown scheme `{shown}`; use amqp(s)://, redis(s)://, redis(s)+sentinel://, redis(s)+cluster:// or embedded:"
            )
        }
    };
    Err(ConnectError::new(ConnectErrorKind::InvalidUrl, what))
}
