//! Signing what this service hands out and gets back, such as stream tokens.
//!
//! A seal's key is derived from the pepper, which every process of a pipeline has: what one has signed, all
//! know again, and there is no second secret to hand out.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::Pepper;

/// Signs bytes and knows them again: HMAC-SHA256.
#[derive(Clone)]
pub struct Seal(Hmac<Sha256>);

impl Seal {
    /// Bytes of a signature.
    pub const BYTES: usize = 32;

    /// One with that key.
    pub fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// The signature of these bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; Self::BYTES] {
        let mut mac = self.0.clone();
        mac.update(bytes);
        mac.finalize().into_bytes().into()
    }

    /// True when the bytes were signed by a seal of this key. Takes as long whatever the signature is.
    pub fn signed(&self, bytes: &[u8], signature: &[u8; Self::BYTES]) -> bool {
        let mut mac = self.0.clone();
        mac.update(bytes);
        mac.verify_slice(signature).is_ok()
    }
}

impl Pepper {
    /// The seal of one purpose.
    pub fn seal(&self, purpose: &str) -> Seal {
        // No API key begins with a NUL (no header value holds one), so no stored hash is a seal's key.
        Seal::new(&self.hash(&format!("\0{purpose}")).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_for_this_purpose_under_this_pepper_is_known_again() {
        let pepper = Pepper::new(b"pepper");
        let seal = pepper.seal("tokens");
        let signature = seal.sign(b"words");
        assert!(pepper.seal("tokens").signed(b"words", &signature), "in another process");
        assert!(!seal.signed(b"other words", &signature));
        assert!(!pepper.seal("cursors").signed(b"words", &signature));
        assert!(!Pepper::new(b"salt").seal("tokens").signed(b"words", &signature));
        for index in 0..Seal::BYTES {
            let mut damaged = signature;
            damaged[index] ^= 1;
            assert!(!seal.signed(b"words", &damaged), "{index}");
        }
    }
}
