//! Context by the word of others: tokens that an application server has signed, and the settings of other software.

use std::cell::RefCell;
use std::rc::Rc;

use audit_identity::claims::{Mapping, OF_TOKENS, Said};
use audit_identity::keys::Keys;
use audit_identity::preset::{self, OF_HASURA, OF_POSTGREST, PresetError};
use audit_identity::token::{self, TokenError};

use crate::context::Values;
use crate::error::Error;
use crate::gucs::{self, ContextPreset};
use crate::pg::{guc, session};
use crate::{context, key_file};

/// The keys of the file as it was read last.
struct Known {
    path: String,
    version: key_file::Version,
    keys: Rc<Keys>,
}

/// What the preset's settings held when they were looked at last.
#[derive(Default)]
struct Seen {
    claims: Vec<u8>,
    headers: Vec<u8>,
}

thread_local! {
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { claims: Vec::new(), headers: Vec::new() }) };
}

/// Checks a token, and sets the keys of the context that tokens say to what it says: those of which it says nothing to none.
pub fn set_context_token(text: &[u8], is_local: bool) -> Result<(), Error> {
    let path = gucs::context_keys_file().ok_or(Error::NoTokens { problem: "audit.context_keys_file is empty." })?;
    let audiences = gucs::context_audience();
    if audiences.is_empty() {
        return Err(Error::NoTokens { problem: "audit.context_audience is empty." });
    }
    if gucs::lost_context_claims() {
        return Err(Error::NoTokens {
            problem: "The connection or the role gave audit.context_claims a value, which is not theirs to give.",
        });
    }
    let keys = keys(path)?;
    let text = std::str::from_utf8(text).map_err(|_| Error::Token(TokenError::Malformed))?;
    let token = token::verify(text, &keys, &audiences, session::unix_usecs(session::clock()).div_euclid(1_000_000))
        .map_err(Error::Token)?;
    let mapping = mapping(OF_TOKENS)?;
    let said = mapping.apply(&token.claims).map_err(|error| Error::TokenClaims { problem: error.to_string() })?;
    if said.is_empty() {
        return Err(Error::TokenClaims {
            problem: "It has none of the claims that audit.context_claims names.".into(),
        });
    }
    guc::set_stamped(&in_database(said), mapping.keys(), token.valid_until, is_local);
    Ok(())
}

fn keys(path: String) -> Result<Rc<Keys>, Error> {
    let refused = |problem: String| Error::ContextKeys { problem };
    let version = key_file::check(&path).map_err(refused)?;
    KNOWN.with_borrow_mut(|known| {
        if let Some(known) = known.as_ref().filter(|known| known.path == path && known.version == version) {
            return Ok(known.keys.clone());
        }
        let text = key_file::read(&path).map_err(refused)?;
        let keys = Rc::new(Keys::of_jwks(text.as_bytes()).map_err(|error| refused(error.to_string()))?);
        *known = Some(Known { path, version, keys: keys.clone() });
        Ok(keys)
    })
}

/// That of the setting, which was checked when it was set, or else the usual one.
fn mapping(usual: &str) -> Result<Mapping, Error> {
    let text = gucs::context_claims();
    Mapping::parse(text.as_deref().unwrap_or(usual)).map_err(|_| Error::Internal("a mapping of claims that is none"))
}

fn in_database(said: Said) -> Values {
    said.values.map(|value| value.map(|value| session::of_utf8(value.as_bytes()).into_owned()))
}

/// Has contexts made anew if the preset's settings have others than they had. These settings are not ours, so nothing tells
/// of their change: they are looked at with each event.
pub fn look(preset: ContextPreset) {
    let (claims, headers) = settings_of(preset);
    let is_same = SEEN.with_borrow(|seen| {
        guc::is_option(claims, &seen.claims) && headers.is_none_or(|headers| guc::is_option(headers, &seen.headers))
    });
    if !is_same {
        let headers = headers.map(guc::option).unwrap_or_default();
        SEEN.set(Seen { claims: guc::option(claims), headers });
        context::changed();
    }
}

fn settings_of(preset: ContextPreset) -> (&'static std::ffi::CStr, Option<&'static std::ffi::CStr>) {
    match preset {
        ContextPreset::Off => (c"", None),
        ContextPreset::Postgrest => (c"request.jwt.claims", Some(c"request.headers")),
        ContextPreset::Hasura => (c"hasura.user", None),
    }
}

/// What the preset's settings say, as they were looked at last.
pub fn of_preset(preset: ContextPreset) -> Result<Values, Error> {
    let usual = match preset {
        ContextPreset::Off => return Ok(Values::default()),
        ContextPreset::Postgrest => OF_POSTGREST,
        ContextPreset::Hasura => OF_HASURA,
    };
    let mapping = mapping(usual)?;
    let (claims, headers) = settings_of(preset);
    let refused = |setting: &std::ffi::CStr, error: PresetError| Error::Preset {
        setting: setting.to_string_lossy().into_owned(),
        problem: error.to_string(),
    };
    SEEN.with_borrow(|seen| {
        let said = with_text(&seen.claims, |text| preset::claims(text, &mapping));
        let mut said = said.map_err(|error| refused(claims, error))?;
        if let Some(headers) = headers {
            with_text(&seen.headers, |text| preset::add_headers(&mut said, text))
                .map_err(|error| refused(headers, error))?;
        }
        Ok(in_database(said))
    })
}

fn with_text<T>(text: &[u8], read: impl FnOnce(&str) -> Result<T, PresetError>) -> Result<T, PresetError> {
    read(std::str::from_utf8(&session::to_utf8(text)).map_err(|_| PresetError::NoObject)?)
}
