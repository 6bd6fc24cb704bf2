//! A server that takes no connection: nobody answers, nobody refuses.

use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

/// A server whose queue of connections is full: the system drops who asks for one more. With what keeps it so.
pub async fn full() -> (String, impl Sized) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        waiting.push(connected.unwrap());
    }
    (format!("http://{address}/api/"), (listener, waiting))
}
