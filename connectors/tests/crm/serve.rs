//! A small server in the test process: each request is a path, each answer a status and a body.

use std::io::{Read as _, Write as _};

/// Serves on 127.0.0.1 until the process ends; the port.
pub fn serve(answer: impl Fn(&str) -> (String, String) + Send + 'static) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut buffer = [0; 16384];
            // The whole request fits into one read on loopback.
            let read = stream.read(&mut buffer).unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let Some(path) = text.split(' ').nth(1) else { continue };
            let (status, body) = answer(path);
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())));
        }
    });
    port
}
