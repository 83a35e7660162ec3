//! A place that leads to a server, and later to another: what a name is to who looks it up anew.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub struct Name {
    address: SocketAddr,
    target: Arc<Mutex<Option<String>>>,
}

impl Name {
    /// That leads to this address.
    pub fn of(target: &str) -> Name {
        let name = Name::of_nobody();
        name.lead_to(target);
        name
    }

    /// Whose connections end at once.
    pub fn of_nobody() -> Name {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, target) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(None::<String>)));
        let served = target.clone();
        // Its threads end with the connections, and the listener with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Some(target) = served.lock().unwrap().clone() else { continue };
                let Ok(server) = TcpStream::connect(target) else { continue };
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Name { address, target }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections lead there.
    pub fn lead_to(&self, target: &str) {
        *self.target.lock().unwrap() = Some(target.to_string());
    }
}
