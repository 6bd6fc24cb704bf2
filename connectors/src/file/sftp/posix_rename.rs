//! `posix-rename@openssh.com`: a rename that replaces what is there in one step.
//!
//! libssh2 has it, the `ssh2` crate does not show it, and the crate keeps its own SFTP handle to itself. So this opens
//! a second SFTP channel on the same session and calls the one function. All calls happen under the session's lock,
//! as the crate's own do.
#![expect(unsafe_code, reason = "the call is exported by libssh2 but not wrapped by the ssh2 crate")]

use libssh2_sys::{
    LIBSSH2_ERROR_SFTP_PROTOCOL, LIBSSH2_FX_OP_UNSUPPORTED, LIBSSH2_SFTP, libssh2_session_last_errno,
    libssh2_sftp_init, libssh2_sftp_last_error, libssh2_sftp_shutdown,
};
use ssh2::{Error, ErrorCode, Session};
use std::{
    ffi::{c_char, c_int},
    ptr::NonNull,
};

// SAFETY: the declaration is that of libssh2_sftp.h in the libssh2 that libssh2-sys builds and links.
unsafe extern "C" {
    fn libssh2_sftp_posix_rename_ex(
        sftp: *mut LIBSSH2_SFTP,
        source: *const c_char,
        source_length: libc::size_t,
        target: *const c_char,
        target_length: libc::size_t,
    ) -> c_int;
}

/// An SFTP channel for renames.
pub(super) struct PosixRename {
    handle: NonNull<LIBSSH2_SFTP>,
    /// Keeps the session alive for as long as the handle, and is its lock.
    session: Session,
}

// SAFETY: libssh2 lets any thread use a handle as long as only one does at a time; every use here is under the
// session's lock, as with `ssh2::Sftp`, which is `Send` for the same reason.
unsafe impl Send for PosixRename {}

/// What a server without the extension is told to have said.
pub(super) fn not_offered() -> Error {
    Error::from_errno(ErrorCode::SFTP(LIBSSH2_FX_OP_UNSUPPORTED))
}

impl PosixRename {
    /// Opens the channel. `None` if the server lives but gives no second one: it is then as if it had no extension.
    pub(super) fn open(session: &Session) -> Result<Option<Self>, Error> {
        let mut raw = session.raw();
        // SAFETY: the guard gives exclusive use of a live session; the result is null or a handle that lives until
        // it is shut down or the session is freed, which the clone of `session` prevents.
        let (handle, errno) = unsafe {
            let handle = libssh2_sftp_init(&raw mut *raw);
            (handle, libssh2_session_last_errno(&raw mut *raw))
        };
        drop(raw);
        match NonNull::new(handle) {
            Some(handle) => Ok(Some(Self { handle, session: session.clone() })),
            None if matches!(
                errno,
                libssh2_sys::LIBSSH2_ERROR_CHANNEL_FAILURE
                    | libssh2_sys::LIBSSH2_ERROR_CHANNEL_REQUEST_DENIED
            ) =>
            {
                Ok(None)
            }
            None => Err(Error::from_errno(ErrorCode::Session(errno))),
        }
    }

    /// Renames `from` to `to`, replacing a file there.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let guard = self.session.raw();
        // SAFETY: handle and session are alive and locked; the pointers are valid for the lengths given with them.
        let (code, status) = unsafe {
            let code = libssh2_sftp_posix_rename_ex(
                self.handle.as_ptr(),
                from.as_ptr().cast(),
                from.len(),
                to.as_ptr().cast(),
                to.len(),
            );
            (code, libssh2_sftp_last_error(self.handle.as_ptr()))
        };
        drop(guard);
        match code {
            0 => Ok(()),
            LIBSSH2_ERROR_SFTP_PROTOCOL => {
                let status = c_int::try_from(status).unwrap_or(libssh2_sys::LIBSSH2_FX_FAILURE);
                Err(Error::from_errno(ErrorCode::SFTP(status)))
            }
            code => Err(Error::from_errno(ErrorCode::Session(code))),
        }
    }
}

impl Drop for PosixRename {
    fn drop(&mut self) {
        let _guard = self.session.raw();
        // SAFETY: the handle is alive, used by nobody else, and not used again. What it answers no longer matters.
        unsafe { libssh2_sftp_shutdown(self.handle.as_ptr()) };
    }
}
