//! Tokens: the examples of RFC 7515, and forgeries.

use audit_identity::keys::{Keys, KeysError};
use audit_identity::token::{LEEWAY, MAX_TOKEN, TokenError, verify};
use base64::prelude::*;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::{Value, json};

/// RFC 7515, appendix A: claims that expire at this time and name no audience, so what is left to complain of is that.
const EXPIRY: i64 = 1_300_819_380;
const NO_AUDIENCE: Result<(), TokenError> = Err(TokenError::Claim("aud"));

const HMAC: &str =
    r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
const HMAC_TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

const RSA: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
const EC_TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

/// RFC 8037, appendix A.
const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"ed","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const ED_SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const SECRET: &[u8] = b"a secret of more than 32 bytes, as it should be";

const NOW: i64 = 1_800_000_000;

fn keys(jwks: &[&str]) -> Keys {
    Keys::of_jwks(set(jwks).as_bytes()).unwrap()
}

fn set(jwks: &[&str]) -> String {
    format!(r#"{{"keys": [{}]}}"#, jwks.join(","))
}

fn secret_key() -> String {
    format!(r#"{{"kty":"oct","kid":"hs","k":"{}"}}"#, BASE64_URL_SAFE_NO_PAD.encode(SECRET))
}

fn ed_signer() -> EncodingKey {
    let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[&head[..], &BASE64_URL_SAFE_NO_PAD.decode(ED_SEED).unwrap()].concat())
}

fn claims() -> Value {
    json!({"sub": "ann", "aud": "orders", "exp": NOW + 60})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn sign(claims: &Value) -> String {
    encode(&Header { kid: Some("ed".into()), ..Header::new(Algorithm::EdDSA) }, claims, &ed_signer()).unwrap()
}

fn check(token: &str, keys: &Keys) -> Result<(), TokenError> {
    verify(token, keys, &["billing".into(), "orders".into()], NOW).map(|_| ())
}

/// A token of any header, signed or not.
fn assembled(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn the_examples_of_the_rfc() {
    for (key, token) in [(HMAC, HMAC_TOKEN), (RSA, RSA_TOKEN), (EC, EC_TOKEN)] {
        let at = |now| verify(token, &keys(&[key]), &[], now).map(|_| ());
        assert_eq!(at(EXPIRY), NO_AUDIENCE, "{key}");
        assert_eq!(at(EXPIRY + LEEWAY), Err(TokenError::Expired));
        // Every key is tried where the token names none, and those of other algorithms never.
        assert_eq!(verify(token, &keys(&[HMAC, RSA, EC, ED]), &[], 0).map(|_| ()), NO_AUDIENCE);
        let altered = token.replacen(".eyJpc3Mi", ".eyJpc3Nj", 1);
        assert_ne!(altered, token);
        assert_eq!(verify(&altered, &keys(&[key]), &[], 0).map(|_| ()), Err(TokenError::Signature));
    }
    assert_eq!(check(RSA_TOKEN, &keys(&[EC, ED, HMAC])), Err(TokenError::UnknownKey));
}

#[test]
fn a_token_that_holds() {
    let token = verify(&sign(&claims()), &keys(&[ED]), &["orders".into()], NOW).unwrap();
    assert_eq!(token.claims["sub"], "ann");
    assert_eq!(token.valid_until, NOW + 60 + LEEWAY);
    let header = Header { kid: Some("hs".into()), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &claims(), &EncodingKey::from_secret(SECRET)).unwrap();
    assert_eq!(check(&token, &keys(&[ED, &secret_key()])), Ok(()));
}

#[test]
fn times_have_a_leeway() {
    let keys = keys(&[ED]);
    for (name, seconds, result) in [
        ("exp", json!(NOW - LEEWAY + 1), Ok(())),
        ("exp", json!(NOW - LEEWAY), Err(TokenError::Expired)),
        ("exp", json!(0), Err(TokenError::Expired)),
        ("exp", json!(NOW as f64 + 0.5), Ok(())),
        ("exp", json!(1e300), Err(TokenError::Claim("exp"))),
        ("exp", json!(-1), Err(TokenError::Claim("exp"))),
        ("exp", json!((NOW + 60).to_string()), Err(TokenError::Claim("exp"))),
        ("exp", json!(null), Err(TokenError::Claim("exp"))),
        ("nbf", json!(NOW + LEEWAY), Ok(())),
        ("nbf", json!(NOW + LEEWAY + 1), Err(TokenError::NotYet)),
        ("nbf", json!("soon"), Err(TokenError::Claim("nbf"))),
        ("nbf", json!(null), Err(TokenError::Claim("nbf"))),
    ] {
        assert_eq!(check(&sign(&with(name, seconds.clone())), &keys), result, "{name} {seconds}");
    }
    let mut eternal = claims();
    eternal.as_object_mut().unwrap().remove("exp");
    assert_eq!(check(&sign(&eternal), &keys), Err(TokenError::Claim("exp")));
}

#[test]
fn only_for_our_audience() {
    let keys = keys(&[ED]);
    for (audience, result) in [
        (json!(["x", "billing"]), Ok(())),
        (json!("shipping"), Err(TokenError::Audience)),
        (json!(["shipping"]), Err(TokenError::Audience)),
        (json!([]), Err(TokenError::Audience)),
        (json!([["orders"]]), Err(TokenError::Claim("aud"))),
        (json!({"orders": 1}), Err(TokenError::Claim("aud"))),
        (json!(null), Err(TokenError::Claim("aud"))),
    ] {
        assert_eq!(check(&sign(&with("aud", audience.clone())), &keys), result, "{audience}");
    }
    assert_eq!(verify(&sign(&claims()), &keys, &[], NOW), Err(TokenError::Audience));
}

#[test]
fn unsigned_tokens_are_refused() {
    let keys = keys(&[ED, RSA, EC, &secret_key()]);
    for algorithm in ["none", "None", "NONE", ""] {
        let token = assembled(&json!({"alg": algorithm, "typ": "JWT"}), &claims(), b"");
        assert_eq!(check(&token, &keys), Err(TokenError::Algorithm), "{algorithm}");
    }
    let header = json!({"alg": "EdDSA", "kid": "ed"});
    assert_eq!(check(&assembled(&header, &claims(), b""), &keys), Err(TokenError::Signature));
    assert_eq!(check(&assembled(&json!({"typ": "JWT"}), &claims(), b""), &keys), Err(TokenError::Algorithm));
}

/// The forger knows the public keys, and signs with their bytes as the secret of an HMAC.
#[test]
fn a_public_key_is_no_secret() {
    let member = |jwk: &str, name: &str| serde_json::from_str::<Value>(jwk).unwrap()[name].as_str().unwrap().to_owned();
    let decoded = |jwk: &str, name: &str| BASE64_URL_SAFE_NO_PAD.decode(member(jwk, name)).unwrap();
    let secrets = [
        (decoded(RSA, "n"), None),
        (member(RSA, "n").into_bytes(), None),
        (RSA.as_bytes().to_vec(), None),
        (decoded(ED, "x"), Some("ed")),
        ([&[4], decoded(EC, "x").as_slice(), decoded(EC, "y").as_slice()].concat(), None),
    ];
    for (secret, kid) in secrets {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
        assert_eq!(check(&token, &keys(&[RSA, EC, ED])), Err(TokenError::UnknownKey));
        assert_ne!(check(&token, &keys(&[RSA, EC, ED, &secret_key()])), Ok(()));
    }
}

#[test]
fn the_header_chooses_no_key_of_its_own() {
    let keys = keys(&[ED, &secret_key()]);
    let signed = |header: Header, key: &EncodingKey| encode(&header, &claims(), key).unwrap();
    // A key of another algorithm, of another id, in the header itself.
    let of_other = Header { kid: Some("hs".into()), ..Header::new(Algorithm::EdDSA) };
    assert_eq!(check(&signed(of_other, &ed_signer()), &keys), Err(TokenError::UnknownKey));
    let of_nobody = Header { kid: Some("".into()), ..Header::new(Algorithm::EdDSA) };
    assert_eq!(check(&signed(of_nobody, &ed_signer()), &keys), Err(TokenError::UnknownKey));
    let own = Header {
        jwk: Some(serde_json::from_str(HMAC).unwrap()),
        jku: Some("https://example.com/keys".into()),
        ..Header::new(Algorithm::HS256)
    };
    assert_eq!(check(&signed(own, &EncodingKey::from_secret(&[7; 64])), &keys), Err(TokenError::Signature));
    let critical = assembled(&json!({"alg": "EdDSA", "crit": ["exp"]}), &claims(), b"x");
    assert_eq!(check(&critical, &keys), Err(TokenError::Critical));
    let longer = signed(Header::new(Algorithm::HS384), &EncodingKey::from_secret(SECRET));
    assert_eq!(check(&longer, &keys), Err(TokenError::Algorithm));
}

#[test]
fn what_is_no_token() {
    let keys = keys(&[ED]);
    for text in
        ["", ".", "..", "...", "a.b.c", "eyJhbGciOiJFZERTQSJ9", "eyJhbGciOiJFZERTQSJ9.e30", "\u{e9}.\u{e9}.\u{e9}"]
    {
        assert!(check(text, &keys).is_err(), "{text}");
    }
    assert_eq!(check(&"x".repeat(MAX_TOKEN + 1), &keys), Err(TokenError::TooLong));
    let list = encode(&Header::new(Algorithm::EdDSA), &json!(["ann"]), &ed_signer()).unwrap();
    assert_eq!(check(&list, &keys), Err(TokenError::Malformed));
    // Five parts: encrypted.
    assert_eq!(check(&format!("{}.a.b", sign(&claims())), &keys), Err(TokenError::Malformed));
}

#[test]
fn keys_for_other_uses_are_left_out() {
    for jwk in [
        r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#,
        r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#,
        r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}"#,
        r#"{"kty":"RSA","use":"enc","n":"AA","e":"AQAB"}"#,
        r#"{"kty":"RSA","alg":"RS512","n":"AA","e":"AQAB"}"#,
        r#"{"kty":"oct","alg":"HS384","k":"AA"}"#,
        r#"{"kty":"oct","key_ops":["encrypt"],"k":"AA"}"#,
        "{}",
    ] {
        assert_eq!(Keys::of_jwks(set(&[jwk]).as_bytes()).unwrap_err(), KeysError::NoneUsable, "{jwk}");
        assert!(Keys::of_jwks(set(&[jwk, ED]).as_bytes()).is_ok(), "{jwk}");
    }
}

#[test]
fn keys_that_are_none() {
    for text in ["", "{}", "[]", r#"{"keys": {}}"#, ED] {
        assert_eq!(Keys::of_jwks(text.as_bytes()).unwrap_err(), KeysError::NoSet, "{text}");
    }
    for jwk in [
        r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#,
        r#"{"kty":"OKP","crv":"Ed25519"}"#,
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
        r#"{"kty":"RSA","n":"?","e":"AQAB"}"#,
        r#"{"kty":"oct"}"#,
    ] {
        assert_eq!(Keys::of_jwks(set(&[ED, jwk]).as_bytes()).unwrap_err(), KeysError::Malformed { at: 1 }, "{jwk}");
    }
    for jwk in [r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#, r#"{"kty":"oct","k":"c2VjcmV0"}"#] {
        assert_eq!(Keys::of_jwks(set(&[jwk]).as_bytes()).unwrap_err(), KeysError::TooShort { at: 0 }, "{jwk}");
    }
}

proptest! {
    /// No other text than the signed one passes.
    #[test]
    fn altered_tokens_are_refused(at in any::<prop::sample::Index>(), replacement in "[A-Za-z0-9._-]") {
        let token = sign(&claims());
        let at = at.index(token.len());
        let mut altered = token.clone();
        altered.replace_range(at..=at, &replacement);
        prop_assume!(altered != token);
        prop_assert!(check(&altered, &keys(&[ED, &secret_key()])).is_err(), "{altered}");
    }
}
