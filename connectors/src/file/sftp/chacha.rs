//! ChaCha20 and Poly1305 for libssh2, from AWS-LC.
//!
//! The cipher that libssh2 and OpenSSH agree on is chacha20-poly1305. libssh2 brings it as portable C, which takes as
//! much of a processor as all the rest of an SFTP drop together, on the one thread that everything waits for. AWS-LC,
//! which is in the program anyway, has it in vector instructions: about four times as fast. (AES would be no way out:
//! libssh2 hands it to OpenSSL in calls of 16 bytes.)
//!
//! libssh2 has no way to register a cipher, so these are the four functions of its `chacha.c` and `poly1305.c`, under
//! their own names: the linker takes these and leaves its two objects in the archive. How a packet is composed, and
//! that a tag is compared before anything is decrypted, stays libssh2's (`cipher-chachapoly.c`). Nothing else of it
//! looks into a [`ChaCha`]. `Cargo.toml` names one version of libssh2-sys, because these signatures are no public
//! interface: before it is raised, compare `chacha.h` and `poly1305.h`. A libssh2 that is linked dynamically keeps
//! its own.
#![expect(unsafe_code, reason = "the functions replace those of a C library and call another")]

use aws_lc_sys::{
    CRYPTO_chacha_20, CRYPTO_poly1305_finish, CRYPTO_poly1305_init, CRYPTO_poly1305_update, poly1305_state,
};
use std::{ffi::c_uint, mem::MaybeUninit};

const KEY: usize = 32;

const BLOCK: usize = 64;

/// What lies in the place of libssh2's `struct chacha_ctx`.
#[repr(C)]
struct ChaCha {
    key: [u8; KEY],
    /// Of blocks, beginning with the less significant half. The original's 64 bits and the nonce's 64 are the same
    /// state as RFC 8439's counter of 32 bits and nonce of 96.
    counter: u32,
    nonce: [u8; 12],
}

/// The original: `u32 input[16]`, allocated by libssh2.
const _: () = assert!(size_of::<ChaCha>() <= 64 && align_of::<ChaCha>() <= align_of::<c_uint>());

/// Sets the key; libssh2 has none but of 256 bits.
///
/// # Safety
/// `state` is a `struct chacha_ctx` of libssh2, `key` has 32 bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn chacha_keysetup(state: *mut ChaCha, key: *const u8, _bits: c_uint) {
    // SAFETY: the state is large enough (above) and aligned, the key as long as promised; they do not overlap.
    unsafe { state.write(ChaCha { key: key.cast::<[u8; KEY]>().read(), counter: 0, nonce: [0; 12] }) }
}

/// Sets nonce and block counter; no counter means zero.
///
/// # Safety
/// `state` has gone through [`chacha_keysetup`]; `nonce` has 8 bytes, `counter` is null or has 8.
#[unsafe(no_mangle)]
unsafe extern "C" fn chacha_ivsetup(state: *mut ChaCha, nonce: *const u8, counter: *const u8) {
    // SAFETY: as promised; none of them overlaps another.
    let (state, [n0, n1, n2, n3, n4, n5, n6, n7], [low @ .., c4, c5, c6, c7]) = unsafe {
        let counter = if counter.is_null() { [0; 8] } else { counter.cast::<[u8; 8]>().read() };
        (&mut *state, nonce.cast::<[u8; 8]>().read(), counter)
    };
    state.counter = u32::from_le_bytes(low);
    state.nonce = [c4, c5, c6, c7, n0, n1, n2, n3, n4, n5, n6, n7];
}

/// Encrypts or decrypts. A packet has some 35,000 bytes at most: the counter's lower half does not overflow.
///
/// # Safety
/// `state` has gone through both of the above; `from` and `to` have `length` bytes and are the same or do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn chacha_encrypt_bytes(state: *mut ChaCha, from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: as promised, which is also all that CRYPTO_chacha_20 asks for.
    unsafe {
        let state = &mut *state;
        CRYPTO_chacha_20(to, from, length, state.key.as_ptr(), state.nonce.as_ptr(), state.counter);
        let blocks = u32::try_from(length.div_ceil(BLOCK)).unwrap_or(u32::MAX);
        state.counter = state.counter.wrapping_add(blocks);
    }
}

/// The authenticator of a message under a key that is used once.
///
/// # Safety
/// `tag` has 16 bytes, `message` `length`, `key` 32; `tag` may lie in none of the others.
#[unsafe(no_mangle)]
unsafe extern "C" fn poly1305_auth(tag: *mut u8, message: *const u8, length: usize, key: *const u8) {
    let mut state = MaybeUninit::<poly1305_state>::uninit();
    // SAFETY: the state is initialised first and finished once; the rest is as promised.
    unsafe {
        CRYPTO_poly1305_init(state.as_mut_ptr(), key);
        CRYPTO_poly1305_update(state.as_mut_ptr(), message, length);
        CRYPTO_poly1305_finish(state.as_mut_ptr(), tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits: String = hex.split_whitespace().collect();
        std::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
    }

    /// RFC 8439 §2.4.2; the counter and the nonce's first four bytes are the counter here.
    #[test]
    fn chacha20_is_that_of_the_rfc() {
        let key: [u8; KEY] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let nonce = bytes::<8>("0000004a 00000000");
        let counter = bytes::<8>("01000000 00000000");
        let plain = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let sealed = bytes::<114>(
            "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b
             f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8
             07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736
             5af90bbf74a35be6b40b8eedf2785e42874d",
        );
        let mut state = MaybeUninit::uninit();
        let mut packet = plain;
        let (first, rest) = packet.split_at_mut(BLOCK);
        // SAFETY: all lengths are as the functions ask for.
        unsafe {
            chacha_keysetup(state.as_mut_ptr(), key.as_ptr(), 256);
            chacha_ivsetup(state.as_mut_ptr(), nonce.as_ptr(), counter.as_ptr());
            chacha_encrypt_bytes(state.as_mut_ptr(), first.as_ptr(), first.as_mut_ptr(), first.len());
            chacha_encrypt_bytes(state.as_mut_ptr(), rest.as_ptr(), rest.as_mut_ptr(), rest.len());
        }
        assert_eq!(packet, sealed);
        // SAFETY: as above.
        unsafe {
            chacha_ivsetup(state.as_mut_ptr(), nonce.as_ptr(), counter.as_ptr());
            chacha_encrypt_bytes(state.as_mut_ptr(), sealed.as_ptr(), packet.as_mut_ptr(), packet.len());
        }
        assert_eq!(packet, plain);
    }

    /// RFC 8439 §2.3.2 is the block after counter 1; without a counter it begins with block 0 (appendix A.1, first).
    #[test]
    fn without_a_counter_it_begins_at_zero() {
        let (key, nonce) = ([0; KEY], [0; 8]);
        let mut state = MaybeUninit::uninit();
        let mut block = [0; BLOCK];
        // SAFETY: all lengths are as the functions ask for.
        unsafe {
            chacha_keysetup(state.as_mut_ptr(), key.as_ptr(), 256);
            chacha_ivsetup(state.as_mut_ptr(), nonce.as_ptr(), std::ptr::null());
            chacha_encrypt_bytes(state.as_mut_ptr(), block.as_ptr(), block.as_mut_ptr(), block.len());
        }
        let expected = bytes::<BLOCK>(
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7
             da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        );
        assert_eq!(block, expected);
    }

    /// RFC 8439 §2.5.2.
    #[test]
    fn poly1305_is_that_of_the_rfc() {
        let key = bytes::<KEY>("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b");
        let message = b"Cryptographic Forum Research Group";
        let mut tag = [0; 16];
        // SAFETY: all lengths are as the function asks for.
        unsafe { poly1305_auth(tag.as_mut_ptr(), message.as_ptr(), message.len(), key.as_ptr()) };
        assert_eq!(tag, bytes::<16>("a8061dc1305136c6c22b8baf0c0127a9"));
    }
}
