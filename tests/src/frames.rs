//! Where one WebSocket frame ends and the next begins (RFC 6455 section 5.2), for a proxy that holds back one message.
//!
//! Two messages that were written one right after the other come in one read, so that reads alone do not tell messages.

/// More than the head of any request or answer of the tunnel.
const MOST_OF_A_HEAD: usize = 16 * 1024;

/// Cuts one direction of a connection into its frames, once it turns out to be a WebSocket; anything else stays as read.
#[derive(Debug, Default)]
pub struct Frames {
    side: Side,
    /// What was read of the head so far, or of a frame's header.
    head: Vec<u8>,
    /// How much of the frame that has begun is still to come.
    left: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Side {
    /// The head of the request or the answer is not whole yet.
    #[default]
    Head,
    WebSocket,
    Other,
}

impl Frames {
    /// How many bytes of what was just read belong to the piece that they begin with: at least one, if there are any.
    pub fn piece(&mut self, read: &[u8]) -> usize {
        match self.side {
            Side::Other => read.len(),
            Side::Head => self.head(read),
            Side::WebSocket => self.frame(read),
        }
    }

    /// Whether the last piece ended a message (or what else a connection carries), rather than a part of one.
    pub fn at_end(&self) -> bool {
        self.side == Side::Other || (self.left == 0 && self.head.is_empty())
    }

    fn head(&mut self, read: &[u8]) -> usize {
        let before = self.head.len();
        self.head.extend_from_slice(read);
        let end = self.head.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let Some(end) = end else {
            let http = [&b"GET "[..], b"HTTP/"].iter().any(|begin| {
                let both = begin.len().min(self.head.len());
                begin[..both] == self.head[..both]
            });
            if !http || self.head.len() > MOST_OF_A_HEAD {
                self.side = Side::Other;
            }
            return read.len();
        };
        let text = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        self.side = if text.contains("upgrade: websocket") { Side::WebSocket } else { Side::Other };
        self.head.clear();
        if self.side == Side::WebSocket { end - before } else { read.len() }
    }

    fn frame(&mut self, read: &[u8]) -> usize {
        let mut taken = 0;
        while self.left == 0 && taken < read.len() {
            self.head.push(read[taken]);
            taken += 1;
            if let Some(length) = payload(&self.head) {
                self.head.clear();
                self.left = length;
                break;
            }
        }
        let more = usize::try_from(self.left).unwrap_or(usize::MAX).min(read.len() - taken);
        self.left -= more as u64;
        taken + more
    }
}

/// The length of the payload after a whole header, the mask counted with it; `None` while the header is not whole.
fn payload(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        127 => u64::from_be_bytes(header.get(2..10)?.try_into().ok()?),
        short => u64::from(short),
    };
    Some(length + mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(frames: &mut Frames, mut read: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        while !read.is_empty() {
            let piece = frames.piece(read);
            found.push(piece);
            read = &read[piece..];
        }
        found
    }

    #[test]
    fn messages_that_came_in_one_read_are_told_apart() {
        let mut frames = Frames::default();
        let mut read = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n".to_vec();
        let head = read.len();
        read.extend([0x81, 0x83, 1, 2, 3, 4, b'a', b'b', b'c']);
        read.extend([0x8a, 0x00]);
        read.extend([0x81, 126, 0, 200]);
        read.extend([b'x'; 200]);
        assert_eq!(pieces(&mut frames, &read), [head, 9, 2, 204]);
        assert!(frames.at_end());
    }

    #[test]
    fn a_message_that_comes_byte_by_byte_ends_where_it_ends() {
        let mut frames = Frames::default();
        frames.piece(b"HTTP/1.1 101 x\r\nupgrade: WebSocket\r\n\r\n");
        let mut message = vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        message.extend(vec![7; 65_536]);
        let ends: Vec<usize> = (0..message.len())
            .filter(|at| {
                assert_eq!(frames.piece(&message[*at..=*at]), 1);
                frames.at_end()
            })
            .collect();
        assert_eq!(ends, [message.len() - 1]);
    }

    #[test]
    fn what_is_no_websocket_stays_as_it_is_read() {
        let mut frames = Frames::default();
        assert_eq!(pieces(&mut frames, b"SSH-2.0-OpenSSH\r\n"), [17]);
        assert!(frames.at_end());
        let mut frames = Frames::default();
        assert_eq!(pieces(&mut frames, b"POST / HTTP/1.1\r\n\r\nbody"), [23]);
        assert_eq!(pieces(&mut frames, b"more of it"), [10]);
        assert!(frames.at_end());
    }
}
