//! Errors as CNI tells them: a code, a message, details (CNI 1.1 §5 "Error").

use serde_json::{Value, json};

/// The error codes of CNI 1.1 §5, and the codes that plugins commonly use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1: the configuration's CNI version is not known here.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported.
    UnsupportedField,
    /// 4: an environment variable is missing or invalid.
    InvalidEnvironment,
    /// 5: a file or a socket failed.
    Io,
    /// 6: the configuration is no valid JSON.
    Decode,
    /// 7: the configuration is invalid.
    InvalidConfig,
    /// 11: try again later.
    TryAgain,
    /// 50: the plugin cannot service ADD requests now.
    NotAvailable,
    /// 100: anything else.
    Internal,
    /// A number that only the plugin knows.
    Plugin(u32),
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Internal => 100,
            Self::Plugin(number) => number,
        }
    }

    /// The code of that number.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        let known = [
            Self::IncompatibleVersion,
            Self::UnsupportedField,
            Self::InvalidEnvironment,
            Self::Io,
            Self::Decode,
            Self::InvalidConfig,
            Self::TryAgain,
            Self::NotAvailable,
            Self::Internal,
        ];
        known.into_iter().find(|code| code.number() == number).unwrap_or(Self::Plugin(number))
    }
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// The code.
    pub code: Code,
    /// What was being done, on what.
    pub message: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl CniError {
    /// An error without a further cause.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None }
    }

    /// An error with its cause.
    pub fn caused(
        code: Code,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { code, message: message.into(), source: Some(source.into()) }
    }

    /// The JSON object that a plugin prints (CNI 1.1 §5).
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let details = self.source.as_ref().map(|cause| host::error::chain(&**cause)).unwrap_or_default();
        json!({ "cniVersion": version, "code": self.code.number(), "msg": self.message, "details": details })
    }

    /// The message with its causes.
    #[must_use]
    pub fn chain(&self) -> String {
        host::error::chain(self)
    }
}

impl From<hostnet::conntrack::ConntrackError> for CniError {
    fn from(error: hostnet::conntrack::ConntrackError) -> Self {
        Self::caused(Code::Internal, "remove UDP flows to a host port", error)
    }
}

impl From<hostnet::link::LinkError> for CniError {
    fn from(error: hostnet::link::LinkError) -> Self {
        Self::caused(Code::Internal, "set up the pod's link", error)
    }
}
