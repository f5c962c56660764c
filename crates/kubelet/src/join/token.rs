//! Bootstrap tokens, as `kubeadm token create` prints them. Upstream: k8s.io/cluster-bootstrap/token/util.

use std::str::FromStr;

/// `abcdef.0123456789abcdef`: a public name, and a secret that is never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    id: String,
    secret: String,
}

impl BootstrapToken {
    /// The public part: the Secret kube-system/bootstrap-token-ID.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// The whole token, as a bearer of it shows it.
    pub(super) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for BootstrapToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let of = |part: &str, length: usize| {
            part.len() == length
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let parts = text.split_once('.').filter(|(id, secret)| of(id, 6) && of(secret, 16));
        parts
            .map(|(id, secret)| Self { id: id.to_owned(), secret: secret.to_owned() })
            .ok_or("is no bootstrap token: 6 and 16 lower-case letters and digits with a dot between")
    }
}

impl std::fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BootstrapToken({}.…)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_two_parts_and_nothing_else() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
        assert_eq!((token.id(), token.secret()), ("abcdef", "0123456789abcdef"));
        assert_eq!(token.bearer(), "abcdef.0123456789abcdef");
        for text in [
            "",
            "abcdef",
            "abcdef.",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdef0",
            "Abcdef.0123456789abcdef",
            "abcdef.0123456789abcde\n",
            "abcdef.0123456789.bcdef",
            "K10aa::node:password",
        ] {
            assert!(text.parse::<BootstrapToken>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
        assert_eq!(format!("{token:?}"), "BootstrapToken(abcdef.…)");
    }
}
