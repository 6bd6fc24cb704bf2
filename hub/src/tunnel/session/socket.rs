//! The socket of a session: its limits, and the task that writes to it.

use super::OUT;
use futures_util::{SinkExt as _, stream::SplitSink};
use passerelle_protocol::{limits::MAX_FRAME, session::CloseReason};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

/// Limits of the WebSocket layer.
pub(super) fn config() -> WebSocketConfig {
    // One byte more than allowed still arrives, so that the session can say what is wrong with it.
    WebSocketConfig::default()
        .max_message_size(Some(MAX_FRAME + 1024))
        .max_frame_size(Some(MAX_FRAME + 1024))
        .read_buffer_size(16 * 1024)
        .write_buffer_size(32 * 1024)
        .max_write_buffer_size(4 * MAX_FRAME)
}

/// Writes frames as they come; many that wait go out together.
pub(super) async fn write<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut out: mpsc::Receiver<Message>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting = Vec::with_capacity(OUT);
    while out.recv_many(&mut waiting, OUT).await > 0 {
        for message in waiting.drain(..) {
            if sink.feed(message).await.is_err() {
                return;
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
    // Errors here mean that the peer is gone, which is what we want.
    drop(sink.close().await);
}

/// How the connection is closed for this reason.
pub(super) fn close_frame(reason: &CloseReason) -> CloseFrame {
    let mut text = reason.to_string();
    // A control frame carries at most 125 bytes, two of them the code (RFC 6455 §5.5).
    text.truncate(text.floor_char_boundary(123));
    CloseFrame { code: CloseCode::from(reason.close_code()), reason: Utf8Bytes::from(text) }
}
