//! Checkpoints: origin, size and root of a log, and the signatures on them.

use signed_note::{Note, Signature, Signer, VerificationError, Verifier, Verifiers};
use tlog_tiles::Checkpoint as Body;

use crate::{Error, Hash, keys};

/// No log of changesets comes near; sizes beyond are refused, so that arithmetic on them is safe.
pub const MAX_SIZE: u64 = 1 << 48;

/// What a checkpoint's line in the server log begins with.
const LOG_LINE: &str = "audit checkpoint: ";

/// What a log was at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn body(&self) -> Result<String, Error> {
        let body = Body::new(&self.origin, self.size, tlog_tiles::Hash(self.root), "");
        let body = body.map_err(|_| Error::MalformedCheckpoint)?;
        String::from_utf8(body.to_bytes()).map_err(|_| Error::MalformedCheckpoint)
    }
}

/// A checkpoint as it was read: with signatures, or without any.
#[derive(Debug)]
pub struct SignedCheckpoint {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Its text up to the signatures.
    body: String,
    signatures: Vec<Signature>,
}

impl SignedCheckpoint {
    /// Reads a signed note, or the three lines of a checkpoint without signatures, or either as the server log has it:
    /// on one line, after the words `audit checkpoint:`. White space at either end does not matter.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let text = match text.split_once(LOG_LINE) {
            Some((_, line)) => line.trim().replace(" | ", "\n"),
            None => text.replace("\r\n", "\n"),
        };
        let text = format!("{text}\n");
        let (body, signatures) = match text.split_once("\n\n") {
            None => (text.clone(), Vec::new()),
            Some((body, rest)) => {
                let lines = rest.trim_end_matches('\n').split('\n');
                let signatures: Result<Vec<_>, _> = lines.map(|line| Signature::from_bytes(line.as_bytes())).collect();
                (format!("{body}\n"), signatures.map_err(|_| Error::MalformedCheckpoint)?)
            }
        };
        Note::new(body.as_bytes(), &signatures).map_err(|_| Error::MalformedCheckpoint)?;
        // The parser wants the empty line that ends a checkpoint's lines.
        let read = Body::from_bytes(format!("{body}\n").as_bytes())
            .or_else(|_| Body::from_bytes(body.as_bytes()))
            .map_err(|_| Error::MalformedCheckpoint)?;
        if read.size() > MAX_SIZE {
            return Err(Error::MalformedCheckpoint);
        }
        let checkpoint = Checkpoint { origin: read.origin().to_owned(), size: read.size(), root: read.hash().0 };
        Ok(SignedCheckpoint { checkpoint, body, signatures })
    }

    /// An unsigned one.
    pub fn new(checkpoint: Checkpoint) -> Result<Self, Error> {
        Ok(SignedCheckpoint { body: checkpoint.body()?, checkpoint, signatures: Vec::new() })
    }

    /// The note, or without signatures the checkpoint's lines alone.
    pub fn text(&self) -> String {
        let mut text = self.body.clone();
        if !self.signatures.is_empty() {
            text.push('\n');
        }
        for signature in &self.signatures {
            text.push_str(&String::from_utf8_lossy(&signature.to_bytes()));
        }
        text
    }

    /// The text on one line, for the server log.
    pub fn log_line(&self) -> String {
        format!("{LOG_LINE}{}", self.text().trim_end().replace('\n', " | "))
    }

    /// The text that signatures are on.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Whether anybody signed.
    pub fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// Signature lines, each with the name and the id of its key.
    pub fn signatures(&self) -> impl Iterator<Item = (&str, u32, String)> {
        self.signatures.iter().map(|signature| {
            let line = String::from_utf8_lossy(&signature.to_bytes()).trim_end().to_owned();
            (signature.name(), signature.id(), line)
        })
    }

    /// Adds a signature, in place of one by the same key.
    pub fn sign(&mut self, signer: &dyn Signer) -> Result<(), Error> {
        let mut note = self.note()?;
        note.add_sigs(&[signer]).map_err(|_| Error::MalformedKey)?;
        let signed = Note::to_bytes(&note);
        *self = Self::parse(&String::from_utf8_lossy(&signed))?;
        Ok(())
    }

    /// Adds the signatures of another copy of the same checkpoint that this one lacks.
    pub fn merge(&mut self, other: &SignedCheckpoint) -> Result<(), Error> {
        if other.body != self.body {
            return Err(Error::MalformedCheckpoint);
        }
        for signature in &other.signatures {
            if !self.signatures.contains(signature) {
                self.signatures.push(signature.clone());
            }
        }
        Ok(())
    }

    /// The names of the keys, of those given, that have signed. Errors: a signature by one of them does not hold; none of
    /// them has signed.
    pub fn verify(&self, vkeys: &[String]) -> Result<Vec<String>, Error> {
        let verifiers: Result<Vec<_>, _> = vkeys.iter().map(|vkey| keys::verifier(vkey)).collect();
        match self.note()?.verify(&Known(verifiers?)) {
            Ok((verified, _)) => Ok(verified.iter().map(|signature| signature.name().to_owned()).collect()),
            Err(signed_note::NoteError::InvalidSignature { name, .. }) => Err(Error::BadSignature { key: name }),
            Err(_) => Err(Error::NotSigned),
        }
    }

    fn note(&self) -> Result<Note, Error> {
        Note::new(self.body.as_bytes(), &self.signatures).map_err(|_| Error::MalformedCheckpoint)
    }
}

struct Known(Vec<Box<dyn Verifier>>);

impl Verifiers for Known {
    fn verifier(&self, name: &str, id: u32) -> Result<&dyn Verifier, VerificationError> {
        let found = self.0.iter().find(|known| known.name() == name && known.key_id() == id);
        found.map(Box::as_ref).ok_or_else(|| VerificationError::UnknownKey { name: name.to_owned(), id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Use, WitnessSigner, generate, log_signer};

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "example.com/log".into(), size: 42, root: [9; 32] }
    }

    #[test]
    fn signed_and_read_back() {
        let (private, public) = generate("example.com/log", Use::Log, &[1; 32]).unwrap();
        let (witness, witness_public) = generate("witness.example.com", Use::Witness, &[2; 32]).unwrap();
        let (_, stranger) = generate("example.net", Use::Log, &[3; 32]).unwrap();
        let mut signed = SignedCheckpoint::new(checkpoint()).unwrap();
        assert!(!signed.is_signed());
        assert_eq!(SignedCheckpoint::parse(&signed.text()).unwrap().checkpoint, checkpoint());
        assert_eq!(signed.verify(std::slice::from_ref(&public)), Err(Error::NotSigned));
        signed.sign(&log_signer(&private).unwrap()).unwrap();
        let unwitnessed = signed.text();
        signed.sign(&WitnessSigner::new(&witness, 1_700_000_000).unwrap()).unwrap();
        let read = SignedCheckpoint::parse(&signed.text()).unwrap();
        assert_eq!(read.text(), signed.text());
        assert_eq!(read.verify(std::slice::from_ref(&public)).unwrap(), ["example.com/log"]);
        assert_eq!(read.verify(&[public.clone(), witness_public]).unwrap(), ["example.com/log", "witness.example.com"]);
        assert_eq!(read.verify(&[stranger]), Err(Error::NotSigned));
        let line = format!("2026-01-02 03:04:05 UTC [1] LOG:  {}", signed.log_line());
        assert_eq!(SignedCheckpoint::parse(&line).unwrap().text(), signed.text());
        let mut merged = SignedCheckpoint::parse(&unwitnessed).unwrap();
        merged.merge(&read).unwrap();
        assert_eq!(merged.text(), read.text());

        let forged = signed.text().replace("\n42\n", "\n43\n");
        let forged = SignedCheckpoint::parse(&forged).unwrap();
        assert_eq!(forged.verify(&[public]), Err(Error::BadSignature { key: "example.com/log".into() }));
        assert_eq!(merged.merge(&forged), Err(Error::MalformedCheckpoint));
    }

    /// The example of C2SP's tlog-cosignature.
    #[test]
    fn the_specification_s_example() {
        let text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
            — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
            — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
        let read = SignedCheckpoint::parse(text).unwrap();
        assert_eq!(read.checkpoint.size, 20_852_163);
        assert_eq!(read.text(), text);
        assert_eq!(
            read.signatures().map(|(name, ..)| name).collect::<Vec<_>>(),
            ["example.com/behind-the-sofa", "witness.example.com/w1"]
        );
    }

    #[test]
    fn what_is_no_checkpoint() {
        for text in [
            "",
            "a",
            "a\n1",
            "a\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
            "a\n1\nCsUYapGG",
            "a\n999999999999999999\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
            "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\nno signature",
            "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— a AAAA",
        ] {
            assert!(SignedCheckpoint::parse(text).is_err(), "{text}");
        }
    }
}
