//! One connection to a server that speaks Redis' protocol, for commands whose answers are looked at.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{TestbedError, TestbedErrorKind};

/// How long a server may take to connect and to answer; a `MIGRATE` of large keys is the longest.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Resp(BufReader<TcpStream>);

/// What a server answers, an error aside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Int(i64),
    Text(Vec<u8>),
    List(Vec<Self>),
}

impl Resp {
    pub(crate) fn connect(port: u16) -> Result<Self, TestbedError> {
        let open = || {
            let stream =
                TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            Ok(stream)
        };
        let stream =
            open().map_err(|source| TestbedError::io(format!("connecting to port {port}"), source))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Runs a command. An error reply is an error here.
    pub(crate) fn ask<W: AsRef<[u8]>>(&mut self, command: &[W]) -> Result<Reply, TestbedError> {
        let shown = || {
            let words = command.iter().map(|word| String::from_utf8_lossy(word.as_ref()));
            words.collect::<Vec<_>>().join(" ")
        };
        match self.exchange(command) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(refusal)) => {
                Err(TestbedError::new(TestbedErrorKind::Refused, format!("{}: {refusal}", shown())))
            }
            Err(source) => Err(TestbedError::io(format!("asking a server: {}", shown()), source)),
        }
    }

    fn exchange<W: AsRef<[u8]>>(&mut self, command: &[W]) -> io::Result<Result<Reply, String>> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for word in command.iter().map(AsRef::as_ref) {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes)?;
        read(&mut self.0)
    }
}

impl Reply {
    /// As text; empty where it is none.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Int(number) => number.to_string(),
            Self::Nil | Self::List(_) => String::new(),
        }
    }

    /// As a number; zero where it is none.
    pub(crate) fn int(&self) -> i64 {
        match self {
            Self::Int(number) => *number,
            Self::Nil | Self::Text(_) | Self::List(_) => 0,
        }
    }

    /// The texts in a list.
    pub(crate) fn texts(self) -> Vec<Vec<u8>> {
        let Self::List(replies) = self else { return Vec::new() };
        let texts = replies.into_iter().filter_map(|reply| match reply {
            Self::Text(bytes) => Some(bytes),
            Self::Nil | Self::Int(_) | Self::List(_) => None,
        });
        texts.collect()
    }
}

fn read(from: &mut impl BufRead) -> io::Result<Result<Reply, String>> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let Some((kind, rest)) = line.split_at_checked(1) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let number = || rest.parse::<i64>().map_err(io::Error::other);
    let reply = match kind {
        "+" => Reply::Text(rest.as_bytes().to_vec()),
        "-" => return Ok(Err(rest.to_owned())),
        ":" => Reply::Int(number()?),
        "$" => match usize::try_from(number()?) {
            Ok(length) => {
                let mut bytes = vec![0; length + 2];
                from.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Text(bytes)
            }
            Err(_) => Reply::Nil,
        },
        "*" => match usize::try_from(number()?) {
            Ok(count) => match (0..count).map(|_| read(from)).collect::<io::Result<Result<_, _>>>()? {
                Ok(replies) => Reply::List(replies),
                Err(refusal) => return Ok(Err(refusal)),
            },
            Err(_) => Reply::Nil,
        },
        other => return Err(io::Error::other(format!("an answer that begins with {other:?}"))),
    };
    Ok(Ok(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_end() {
        let mut bytes = &b"*3\r\n$3\r\na\r\n\r\n:-7\r\n*1\r\n$-1\r\n+OK\r\n-ERR no\r\n"[..];
        let list = read(&mut bytes).expect("whole").expect("no error");
        let inner = Reply::List(vec![Reply::Nil]);
        assert_eq!(list, Reply::List(vec![Reply::Text(b"a\r\n"[..3].to_vec()), Reply::Int(-7), inner]));
        assert_eq!(read(&mut bytes).expect("whole"), Ok(Reply::Text(b"OK".to_vec())));
        assert_eq!(read(&mut bytes).expect("whole"), Err("ERR no".to_owned()));
        assert!(read(&mut bytes).is_err(), "nothing is left");
    }
}
