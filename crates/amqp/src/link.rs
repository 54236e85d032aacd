//! A connection's socket: opened here, read by lapin.
//!
//! Owns what lapin does not offer. A [`Cut`] ends the socket from outside, so that a handshake with a broker that never
//! answers does not keep a thread for ever; the server's first frame is read along, because lapin does not tell which
//! server it speaks to; and what would cost the whole connection is kept from it by a [`Sieve`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use futures_io::{AsyncRead, AsyncWrite, IoSlice, IoSliceMut};
use futures_util::Stream;
use lapin::AsyncTcpStream;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::options::Options;
use crate::sieve::Sieve;

/// Ends a socket, whoever waits on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Cut {
    pub(crate) fn cut(&self) {
        if let Some(socket) = self.lock().take() {
            // an error means that it is closed already
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn watch(&self, socket: std::net::TcpStream) {
        *self.lock() = Some(socket);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<std::net::TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Product and version, as the server said in its first frame.
pub(crate) type ServerName = Arc<OnceLock<String>>;

/// Opens the socket: name lookup, TCP, and TLS where the URL asks for it.
pub(crate) async fn open(
    options: &Options,
    (host, port): (&str, u16),
    cut: &Cut,
    server: &ServerName,
) -> io::Result<AsyncTcpStream<Link>> {
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    let socket = socket.into_std()?;
    cut.watch(socket.try_clone()?);
    let socket = AsyncTcpStream::Plain(Socket(TcpStream::from_std(socket)?));
    let stream =
        if options.is_tls() { socket.into_tls(host, options.certificates.config()).await? } else { socket };
    Ok(AsyncTcpStream::Plain(Link {
        stream,
        sieve: Sieve::default(),
        greeting: Some((Vec::new(), Arc::clone(server))),
    }))
}

/// tokio's socket in the words that lapin uses.
#[derive(Debug)]
pub(crate) struct Socket(TcpStream);

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut self.0).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(buf.filled().len())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What lapin reads and writes: the socket, and the server's greeting until it is read.
#[derive(Debug)]
pub(crate) struct Link {
    stream: AsyncTcpStream<Socket>,
    sieve: Sieve,
    greeting: Option<(Vec<u8>, ServerName)>,
}

impl Link {
    fn overhear(&mut self, bytes: &[u8]) {
        let Some((heard, server)) = &mut self.greeting else { return };
        heard.extend_from_slice(bytes);
        if let Some(name) = server_name(heard) {
            // a server that was upgraded between two connections keeps the name it had
            let _ = server.set(name);
        } else if heard.len() < 8192 && !heard.contains(&FRAME_END) {
            return;
        }
        self.greeting = None;
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let link = &mut *self;
        loop {
            let bytes = link.sieve.hand_out(buf);
            if bytes > 0 || buf.is_empty() {
                link.overhear(buf.get(..bytes).unwrap_or_default());
                return Poll::Ready(Ok(bytes));
            }
            match ready!(Pin::new(&mut link.stream).poll_read(cx, link.sieve.space()))? {
                0 => return Poll::Ready(Ok(0)),
                bytes => link.sieve.filled(bytes),
            }
        }
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter_mut().find(|buf| !buf.is_empty());
        self.poll_read(cx, first.map_or(&mut [], |buf| &mut **buf))
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

const FRAME_END: u8 = 0xce;

/// Finds `product` and `version` among the server properties of `connection.start`.
fn server_name(greeting: &[u8]) -> Option<String> {
    Some(format!("{} {}", property(greeting, b"\x07productS")?, property(greeting, b"\x07versionS")?))
}

/// The long string that follows `name`, a short string and the type byte of a long one.
fn property<'a>(greeting: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let at = greeting.windows(name.len()).position(|window| window == name)?;
    let rest = greeting.get(at + name.len()..)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok().filter(|length| *length <= 100)?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// lapin's runtime: tokio's, with [`Link`] for a socket.
#[derive(Clone, Debug)]
pub(crate) struct Kit(Tokio);

impl Kit {
    pub(crate) fn new(handle: &Handle) -> Self {
        Self(Tokio::default().with_handle(handle.clone()))
    }
}

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> async_rs::util::Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> async_rs::util::Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Link;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // lapin is given the way to connect and never asks for this one
        Err::<Link, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_named_by_its_greeting() {
        let greeting = b"\x01\0\0\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8\xce";
        assert_eq!(server_name(greeting).as_deref(), Some("RabbitMQ 3.10.8"));
        for end in 0..greeting.len() - 2 {
            assert_eq!(server_name(&greeting[..end]), None, "{end}");
        }
        assert_eq!(server_name(b"\x07productS\xff\xff\xff\xff\x07versionS"), None);
    }
}
