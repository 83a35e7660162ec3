//! One open connection to Redis: TCP, TLS or a unix socket, logged in, with the database chosen.
//! It sends what it is given and reads one answer, in RESP2, by the client library's own writing
//! and parsing. The stream is ours and not the library's for three reasons: the name is looked up
//! within a bounded time, it is known which address was connected to, and a read that a signal
//! interrupts (as SIGSTOP and SIGCONT do where there is a timeout) goes on and loses nothing.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ConnectionLike, Parser, RedisError, RedisResult, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// An open connection. After an error that is not an answer of the server it must not be used again.
pub struct Connection {
    stream: Stream,
    parser: Parser,
    database: i64,
    /// The server knows no users, and was told the password alone.
    pub(super) has_no_users: bool,
    /// How long an answer is waited for, as the system was told last.
    patience: Option<Duration>,
}

enum Stream {
    Tcp(Steady<TcpStream>),
    Tls(Box<StreamOwned<ClientConnection, Steady<TcpStream>>>),
    Unix(Steady<UnixStream>),
}

/// Goes on after an interruption.
struct Steady<S>(S);

impl<S: Read> Read for Steady<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl<S: Write> Write for Steady<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Stream {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream: &mut dyn Write = match self {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => stream,
            Stream::Unix(stream) => stream,
        };
        stream.write_all(bytes)?;
        stream.flush()
    }
}

impl Connection {
    /// Connects to the first of these addresses that answers; they share the time. Also which it was.
    ///
    /// # Errors
    ///
    /// What the last of them said.
    pub fn tcp(addresses: &[IpAddr], port: u16, patience: Duration) -> io::Result<(Connection, SocketAddr)> {
        let (stream, address) = connect(addresses, port, patience)?;
        Ok((Connection::on(Stream::Tcp(Steady(stream)), patience)?, address))
    }

    /// The same with TLS, where the certificate must be for `name`. The handshake is made at the first use.
    ///
    /// # Errors
    ///
    /// The same, or that no certificate can bear this name.
    pub fn tls(
        name: &str,
        addresses: &[IpAddr],
        port: u16,
        config: Arc<ClientConfig>,
        patience: Duration,
    ) -> io::Result<(Connection, SocketAddr)> {
        let name = ServerName::try_from(name.to_string()).map_err(io::Error::other)?;
        let client = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let (stream, address) = connect(addresses, port, patience)?;
        let stream = Stream::Tls(Box::new(StreamOwned::new(client, Steady(stream))));
        Ok((Connection::on(stream, patience)?, address))
    }

    /// Connects to a unix socket.
    ///
    /// # Errors
    ///
    /// If that fails.
    pub fn unix(path: &std::path::Path, patience: Duration) -> io::Result<Connection> {
        Connection::on(Stream::Unix(Steady(UnixStream::connect(path)?)), patience)
    }

    fn on(stream: Stream, patience: Duration) -> io::Result<Connection> {
        let mut connection =
            Connection { stream, parser: Parser::new(), database: 0, has_no_users: false, patience: None };
        connection.set_read_timeout(patience)?;
        match &connection.stream {
            Stream::Tcp(stream) => stream.0.set_write_timeout(Some(patience))?,
            Stream::Tls(stream) => stream.sock.0.set_write_timeout(Some(patience))?,
            Stream::Unix(stream) => stream.0.set_write_timeout(Some(patience))?,
        }
        Ok(connection)
    }

    /// Logs in and chooses the database, as far as the settings say.
    ///
    /// # Errors
    ///
    /// What the server answers.
    pub fn set_up(&mut self, settings: &redis::RedisConnectionInfo) -> RedisResult<()> {
        self.log_in(settings)?;
        if settings.db() != 0 {
            self.ask(&redis::cmd("SELECT").arg(settings.db()).get_packed_command())?;
            self.database = settings.db();
        }
        Ok(())
    }

    /// Logs in, for the first time or anew, if the settings have a password. Refused, it stays as it was.
    ///
    /// # Errors
    ///
    /// What the server answers.
    pub fn log_in(&mut self, settings: &redis::RedisConnectionInfo) -> RedisResult<()> {
        if let Some(password) = settings.password() {
            let auth = |username: Option<&str>| redis::cmd("AUTH").arg(username).arg(password).get_packed_command();
            match self.ask(&auth(settings.username())) {
                // Servers before 6 know one user only, and no name for it.
                Err(error) if error.to_string().contains("wrong number of arguments") => {
                    self.has_no_users = true;
                    self.ask(&auth(None))?
                }
                answer => answer?,
            };
        }
        Ok(())
    }

    /// Sends a command and reads the next answer. An error that the server answers is an error.
    ///
    /// # Errors
    ///
    /// That, or why there is no answer.
    pub fn ask(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.next_answer(packed)?.extract_error()
    }

    fn next_answer(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.stream.send(packed).map_err(RedisError::from)?;
        self.parser.parse_value(&mut self.stream)
    }

    /// How long an answer is waited for.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn set_read_timeout(&mut self, patience: Duration) -> io::Result<()> {
        if self.patience.replace(patience) == Some(patience) {
            return Ok(());
        }
        match &self.stream {
            Stream::Tcp(stream) => stream.0.set_read_timeout(Some(patience)),
            Stream::Tls(stream) => stream.sock.0.set_read_timeout(Some(patience)),
            Stream::Unix(stream) => stream.0.set_read_timeout(Some(patience)),
        }
    }
}

/// For those who run the library's commands on it.
impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, packed: &[u8]) -> RedisResult<Value> {
        self.next_answer(packed)
    }

    fn req_packed_commands(&mut self, packed: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.stream.send(packed).map_err(RedisError::from)?;
        for _ in 0..offset {
            self.parser.parse_value(&mut self.stream)?;
        }
        (0..count).map(|_| self.parser.parse_value(&mut self.stream)).collect()
    }

    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.next_answer(&command.get_packed_command())
    }

    fn get_db(&self) -> i64 {
        self.database
    }

    fn check_connection(&mut self) -> bool {
        self.ask(&redis::cmd("PING").get_packed_command()).is_ok()
    }

    fn is_open(&self) -> bool {
        true
    }
}

fn connect(addresses: &[IpAddr], port: u16, patience: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    let share = patience / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        match TcpStream::connect_timeout(&address, share) {
            Ok(stream) => {
                // Commands are single writes, and an answer awaited must not wait for an acknowledgement.
                stream.set_nodelay(true)?;
                let address = stream.peer_addr().unwrap_or(address);
                return Ok((stream, address));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
