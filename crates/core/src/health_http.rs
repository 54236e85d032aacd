//! Health over HTTP, for whoever asks from outside the process.
//!
//! It has a thread and a runtime of its own: it must answer while handlers block every thread of the application's. It is
//! for probes, not for the public: what it says names consumers and errors, and nothing is asked of who asks.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::actor::{Health, Monitor};

/// Connections that are served at once; more wait to be accepted.
const CONNECTIONS: usize = 32;
/// Longest wait for a request's head.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection, which serves one request.
const LIFE: Duration = Duration::from_secs(10);
/// Largest head of a request, in bytes: the least that hyper takes.
const LARGEST: usize = 8192;

/// Where the server will listen; nobody is answered yet.
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// A running server. It goes on when this is dropped, as the tree does.
pub(crate) struct HealthServer {
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

/// Takes the address; an error says which, why, and the way out.
pub(crate) fn bind(address: SocketAddr) -> Result<Bound, String> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(Bound { address: listener.local_addr()?, listener })
    });
    bound
        .map_err(|error| format!("serve health on {address}: {error}; choose a free address of this machine"))
}

impl Bound {
    /// Serves on it from now on.
    pub(crate) fn serve(self, monitor: Monitor) -> Result<HealthServer, String> {
        let address = self.address;
        let failed = |error: std::io::Error| format!("serve health on {address}: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, told) = watch::channel(false);
        let (done, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("steadfast-health".to_owned());
        let serve = move || {
            runtime.block_on(accept(self.listener, monitor, told));
            // open connections go with the runtime, and the address is free before anybody is told so
            drop(runtime);
            let _ = done.send(());
        };
        thread.spawn(serve).map_err(failed)?;
        Ok(HealthServer { address, stop, ended })
    }
}

impl HealthServer {
    /// Ends it, and waits until the address is free.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        // a thread that is gone has ended, too
        let _ = self.ended.await;
    }
}

async fn accept(listener: TcpListener, monitor: Monitor, mut told: watch::Receiver<bool>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(target: "steadfast", %error, "health is not served");
            return;
        }
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let serving = serve(stream, monitor.clone());
                    tokio::spawn(async move {
                        // one that is slow gets no answer
                        let _ = tokio::time::timeout(LIFE, serving).await;
                        drop(permit);
                    });
                }
                // most often too many open files: others may close some meanwhile
                Err(error) => {
                    tracing::warn!(target: "steadfast", %error, "accept a connection that asks for health");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let stopped = async {
        if told.wait_for(|stop| *stop).await.is_err() {
            // the tree's handle was dropped, and the tree runs on
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stopped => {}
    }
}

async fn serve(stream: tokio::net::TcpStream, monitor: Monitor) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &monitor);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LARGEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(target: "steadfast", %error, "answer a question for health");
    }
}

fn answer<B>(request: &Request<B>, monitor: &Monitor) -> Response<Full<Bytes>> {
    let health = monitor.health();
    let (good, text) = match request.uri().path() {
        "/livez" => (health.live, if health.live { "live".to_owned() } else { lines(&health) }),
        "/readyz" | "/healthz" => {
            (health.ready, if health.ready { "ready".to_owned() } else { lines(&health) })
        }
        "/status" => (true, monitor.status().to_string()),
        _ => {
            return text_answer(
                StatusCode::NOT_FOUND,
                "not here: ask /livez, /readyz, /healthz or /status".to_owned(),
            );
        }
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text_answer(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if wants_json(request) {
        let Health { live, ready, why } = health;
        let body = serde_json::json!({ "live": live, "ready": ready, "why": why });
        return body_answer(status, "application/json", body.to_string());
    }
    text_answer(status, text)
}

fn wants_json<B>(request: &Request<B>) -> bool {
    let accepts = request.headers().get_all(ACCEPT);
    accepts.iter().any(|value| value.to_str().is_ok_and(|value| value.contains("application/json")))
}

/// The causes, each on a line.
fn lines(health: &Health) -> String {
    health.why.join("\n")
}

fn text_answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    body_answer(status, "text/plain; charset=utf-8", text + "\n")
}

fn body_answer(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
