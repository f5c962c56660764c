//! Certificates for tests of this crate.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

/// An authority made by openssl: valid from 2026-11-26 to 2126.
pub(crate) const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBgjCCASegAwIBAgIUZDdGgVDmvBPKV5xLyu2j++3CO80wCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKa3ViZXJuZXRlczAgFw0yNjExMjYwOTE2NDlaGA8yMTI2MTEw
MjA5MTY0OVowFTETMBEGA1UEAwwKa3ViZXJuZXRlczBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABB6iFOm5CA+gRCkHm9GsitzUWGcmTDerW+4sbEdG4+xoRwZROArq
lrtSWzKaYdVC7jBfZj7qN9npKa0qQAakNSmjUzBRMB0GA1UdDgQWBBRxUSXTOQr4
o5whaca9C9IUzzZkxDAfBgNVHSMEGDAWgBRxUSXTOQr4o5whaca9C9IUzzZkxDAP
BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDyu4yjof8jigeOjRmc
qai/h4vW6Ym1+N5kLm/lAOouJgIhAIaJWK5UrgwtUsxFHQBjoCKbn27YuVkGoeZc
Z65VdROX
-----END CERTIFICATE-----
";

/// A certificate and its key, valid between two seconds since 1970.
pub(crate) fn self_signed(name: &str, not_before: u64, not_after: u64) -> (String, String) {
    let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (at(not_before), at(not_after));
    let key = KeyPair::generate().expect("a key");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}
