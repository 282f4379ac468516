//! Keys: those of the log, as signed notes have them, and those of witnesses, whose signatures carry a time.

use base64::prelude::*;
use ed25519_dalek::{Signer as _, SigningKey, Verifier as _, VerifyingKey};
use signed_note::{Signer, StandardSigner, StandardVerifier, Verifier, key_id};

use crate::Error;

const ED25519: u8 = 1;
const COSIGNATURE: u8 = 4;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Signs checkpoints: the log.
    Log,
    /// Cosigns them: a witness.
    Witness,
}

impl Use {
    fn algorithm(self) -> u8 {
        match self {
            Use::Log => ED25519,
            Use::Witness => COSIGNATURE,
        }
    }
}

/// A new pair: the private key, and the public one (vkey). `seed` must be 32 bytes from a good random source.
pub fn generate(name: &str, key_use: Use, seed: &[u8; 32]) -> Result<(String, String), Error> {
    if !signed_note::is_key_name_valid(name) || name.chars().any(char::is_control) {
        return Err(Error::MalformedKey);
    }
    let key = SigningKey::from_bytes(seed);
    let algorithm = key_use.algorithm();
    let public = [&[algorithm], key.verifying_key().as_bytes().as_slice()].concat();
    let private = [&[algorithm], seed.as_slice()].concat();
    let id = key_id(name, &public);
    Ok((
        format!("PRIVATE+KEY+{name}+{id:08x}+{}", BASE64_STANDARD.encode(private)),
        format!("{name}+{id:08x}+{}", BASE64_STANDARD.encode(public)),
    ))
}

/// A signing key of a log, from its text.
pub fn log_signer(text: &str) -> Result<StandardSigner, Error> {
    StandardSigner::new(text.trim()).map_err(|_| Error::MalformedKey)
}

/// The public key that belongs to a private one, of either use.
pub fn public_of(private: &str) -> Result<String, Error> {
    let (name, key_use, seed) = parse_private(private)?;
    generate(&name, key_use, &seed).map(|(_, public)| public)
}

fn parse_private(text: &str) -> Result<(String, Use, [u8; 32]), Error> {
    let rest = text.trim().strip_prefix("PRIVATE+KEY+").ok_or(Error::MalformedKey)?;
    let mut parts = rest.splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Error::MalformedKey);
    };
    let bytes = BASE64_STANDARD.decode(key).map_err(|_| Error::MalformedKey)?;
    let (&algorithm, seed) = bytes.split_first().ok_or(Error::MalformedKey)?;
    let key_use = match algorithm {
        ED25519 => Use::Log,
        COSIGNATURE => Use::Witness,
        _ => return Err(Error::MalformedKey),
    };
    let seed: [u8; 32] = seed.try_into().map_err(|_| Error::MalformedKey)?;
    let (same, _) = generate(name, key_use, &seed)?;
    // The id is that of the public key.
    if same.split('+').nth(3) != Some(id) {
        return Err(Error::MalformedKey);
    }
    Ok((name.to_owned(), key_use, seed))
}

/// A public key of a log or of a witness, from its vkey.
pub fn verifier(vkey: &str) -> Result<Box<dyn Verifier>, Error> {
    let vkey = vkey.trim();
    if let Ok(verifier) = StandardVerifier::new(vkey) {
        return Ok(Box::new(verifier));
    }
    Ok(Box::new(WitnessVerifier::new(vkey)?))
}

/// Whether a vkey is that of a witness.
pub fn is_witness(vkey: &str) -> bool {
    WitnessVerifier::new(vkey.trim()).is_ok()
}

/// Signs as a witness does, at a given time.
pub struct WitnessSigner {
    name: String,
    id: u32,
    key: SigningKey,
    /// Seconds since the Unix epoch.
    time: u64,
}

impl WitnessSigner {
    /// From the private key's text.
    pub fn new(private: &str, time: u64) -> Result<Self, Error> {
        let (name, Use::Witness, seed) = parse_private(private)? else { return Err(Error::MalformedKey) };
        let key = SigningKey::from_bytes(&seed);
        let id = key_id(&name, &[&[COSIGNATURE], key.verifying_key().as_bytes().as_slice()].concat());
        Ok(WitnessSigner { name, id, key, time })
    }
}

impl Signer for WitnessSigner {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, ed25519_dalek::SignatureError> {
        let signature = self.key.try_sign(&cosigned(self.time, text))?;
        Ok([&self.time.to_be_bytes(), signature.to_bytes().as_slice()].concat())
    }
}

/// What a witness signs: a header, the time, and the checkpoint's text.
fn cosigned(time: u64, text: &[u8]) -> Vec<u8> {
    [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat()
}

struct WitnessVerifier {
    name: String,
    id: u32,
    key: VerifyingKey,
}

impl WitnessVerifier {
    fn new(vkey: &str) -> Result<Self, Error> {
        let mut parts = vkey.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::MalformedKey);
        };
        let key = BASE64_STANDARD.decode(key).map_err(|_| Error::MalformedKey)?;
        let computed = key_id(name, &key);
        let Some((&COSIGNATURE, bytes)) = key.split_first() else { return Err(Error::MalformedKey) };
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| Error::MalformedKey)?;
        if !signed_note::is_key_name_valid(name) || id != format!("{computed:08x}") {
            return Err(Error::MalformedKey);
        }
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Error::MalformedKey)?;
        Ok(WitnessVerifier { name: name.to_owned(), id: computed, key })
    }
}

impl Verifier for WitnessVerifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        let time = u64::from_be_bytes(*time);
        time <= i64::MAX as u64 && self.key.verify(&cosigned(time, text), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_belongs_together() {
        for key_use in [Use::Log, Use::Witness] {
            let (private, public) = generate("example.com/audit", key_use, &[7; 32]).unwrap();
            assert_eq!(public_of(&private).unwrap(), public);
            assert!(verifier(&public).is_ok());
            assert_eq!(is_witness(&public), key_use == Use::Witness);
            assert_eq!(log_signer(&private).is_ok(), key_use == Use::Log);
            assert_eq!(WitnessSigner::new(&private, 1).is_ok(), key_use == Use::Witness);
            let other = private.replace("example.com", "example.org");
            assert_eq!(public_of(&other), Err(Error::MalformedKey));
        }
        for name in ["", "a b", "a+b", "a\nb", "a\u{1}b"] {
            assert_eq!(generate(name, Use::Log, &[7; 32]), Err(Error::MalformedKey));
        }
        for text in ["", "PRIVATE+KEY+a", "a+b", "a+00000000+", "a+00000000+BA=="] {
            assert_eq!(public_of(text), Err(Error::MalformedKey));
            assert!(verifier(text).is_err());
        }
    }

    /// The pair of Go's documentation of signed notes.
    #[test]
    fn keys_of_another_implementation() {
        let private = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        assert_eq!(public_of(private).unwrap(), "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
    }
}
