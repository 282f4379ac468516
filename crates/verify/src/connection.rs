//! Connecting, as libpq's settings for TLS say: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, in the DSN or the environment.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use postgres::config::{Config, Host, SslMode};
use postgres::{Client, NoTls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What is checked of the server's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    Nothing,
    /// That an authority signed it.
    Authority,
    /// And that it is for this host.
    Host,
}

/// The settings that concern TLS. The library knows others of them, and some not at all.
#[derive(Default, PartialEq, Eq, Debug)]
struct Tls {
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// Connects to a database.
pub fn connect(dsn: &str) -> Result<Client> {
    let (rest, mut tls) = split(dsn)?;
    let from_environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    tls.mode = tls.mode.or_else(|| from_environment("PGSSLMODE"));
    tls.root = tls.root.or_else(|| from_environment("PGSSLROOTCERT"));
    tls.certificate = tls.certificate.or_else(|| from_environment("PGSSLCERT"));
    tls.key = tls.key.or_else(|| from_environment("PGSSLKEY"));
    let mut config: Config = rest.parse().context("the DSN is malformed")?;
    let mode = tls.mode.as_deref().unwrap_or("prefer");
    let (mode, check) = match mode {
        "disable" => (SslMode::Disable, Check::Nothing),
        "allow" | "prefer" => (SslMode::Prefer, Check::Nothing),
        // As libpq has it: with an authority's certificate at hand it is used.
        "require" if root(&tls).is_some_and(|root| root == "system" || Path::new(&root).exists()) => {
            (SslMode::Require, Check::Authority)
        }
        "require" => (SslMode::Require, Check::Nothing),
        "verify-ca" => (SslMode::Require, Check::Authority),
        "verify-full" => (SslMode::Require, Check::Host),
        other => bail!("sslmode {other} is none of disable, allow, prefer, require, verify-ca, verify-full"),
    };
    // As libpq has it: there is no TLS over a socket of the same machine.
    let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    let mode = if is_local && config.get_hostaddrs().is_empty() { SslMode::Disable } else { mode };
    config.ssl_mode(mode);
    const CONNECTING: &str = "connecting to the database";
    if mode == SslMode::Disable {
        return config.connect(NoTls).context(CONNECTING);
    }
    config.connect(MakeRustlsConnect::new(client_config(&tls, check)?)).context(CONNECTING)
}

fn home(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".postgresql").join(name))
}

fn root(tls: &Tls) -> Option<String> {
    tls.root.clone().or_else(|| Some(home("root.crt")?.to_str()?.to_owned()))
}

fn client_config(tls: &Tls, check: Check) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        Check::Nothing => Arc::new(Lenient { authority: None, provider: provider.clone() }),
        _ => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(tls)?), provider.clone())
                .build()
                .context("the authorities' certificates")?;
            match check {
                Check::Host => verifier,
                _ => Arc::new(Lenient { authority: Some(verifier), provider: provider.clone() }),
            }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let given = |own: &Option<String>, name| match own {
        Some(path) => Some(PathBuf::from(path)),
        None => home(name).filter(|path| path.exists()),
    };
    match (given(&tls.certificate, "postgresql.crt"), given(&tls.key, "postgresql.key")) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(&certificate)?;
            let key = PrivateKeyDer::from_pem_file(&key).with_context(|| key.display().to_string())?;
            builder.with_client_auth_cert(chain, key).context("the client's certificate")
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    read().with_context(|| path.display().to_string())
}

fn roots(tls: &Tls) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match root(tls).context("sslrootcert is not set, and there is no home folder to look in")?.as_str() {
        "system" => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        path => {
            for certificate in certificates(Path::new(path))? {
                roots.add(certificate).with_context(|| path.to_owned())?;
            }
        }
    }
    if roots.is_empty() {
        bail!("there is no authority's certificate to check the server's against");
    }
    Ok(roots)
}

/// Takes a certificate for any host: of any authority, or of those given.
#[derive(Debug)]
struct Lenient {
    authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes the settings of TLS out of a DSN.
fn split(dsn: &str) -> Result<(String, Tls)> {
    let mut tls = Tls::default();
    if dsn.starts_with("postgres://") || dsn.starts_with("postgresql://") {
        let Some((head, query)) = dsn.split_once('?') else { return Ok((dsn.to_owned(), tls)) };
        let mut rest = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match tls.place(name) {
                Some(place) => *place = Some(decoded(value)?),
                None => rest.push(pair),
            }
        }
        let head = if rest.is_empty() { head.to_owned() } else { format!("{head}?{}", rest.join("&")) };
        return Ok((head, tls));
    }
    let mut rest = String::new();
    let mut tail = dsn.trim_start();
    while !tail.is_empty() {
        let (name, after) = tail.split_once('=').context("the DSN is malformed: a name without a value")?;
        let after = after.trim_start();
        let (value, length) = value(after)?;
        let (whole, next) = after.split_at(length);
        match tls.place(name.trim()) {
            Some(place) => *place = Some(value),
            None => rest.push_str(&format!("{} = {whole} ", name.trim())),
        }
        tail = next.trim_start();
    }
    Ok((rest, tls))
}

/// The value at the beginning of the text, and how long it is there.
fn value(text: &str) -> Result<(String, usize)> {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' if is_quoted => return Ok((value, at + 1)),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            space if !is_quoted && space.is_whitespace() => return Ok((value, at)),
            other => value.push(other),
        }
    }
    if is_quoted {
        bail!("the DSN is malformed: a quote is not closed");
    }
    Ok((value, text.len()))
}

fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(decoded.context("the DSN is malformed: % without two digits")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).context("the DSN is malformed")
}

impl Tls {
    fn place(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "sslmode" => Some(&mut self.mode),
            "sslrootcert" => Some(&mut self.root),
            "sslcert" => Some(&mut self.certificate),
            "sslkey" => Some(&mut self.key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(root: &str) -> Tls {
        Tls { mode: Some("verify-full".into()), root: Some(root.into()), ..Tls::default() }
    }

    #[test]
    fn settings_of_tls_are_taken_out() {
        let dsn = r"host=db dbname='my db' sslmode=verify-full sslrootcert='/a b/it\'s.crt' user=me";
        assert_eq!(split(dsn).unwrap(), ("host = db dbname = 'my db' user = me ".into(), full("/a b/it's.crt")));
        let dsn = "postgresql://me@db/bank?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b.crt";
        assert_eq!(split(dsn).unwrap(), ("postgresql://me@db/bank?connect_timeout=3".into(), full("/a b.crt")));
        assert_eq!(split("postgres://db/x?sslkey=k").unwrap().0, "postgres://db/x");
        assert_eq!(split("postgres://db/x").unwrap(), ("postgres://db/x".into(), Tls::default()));
        assert_eq!(split("").unwrap(), (String::new(), Tls::default()));
        for malformed in ["host", "host='x", "postgres://x?sslkey=%1"] {
            assert!(split(malformed).is_err(), "{malformed}");
        }
    }
}
