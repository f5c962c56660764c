//! The runtime handlers that RuntimeClasses name, and what each can do on this machine.

use cri::v1;

use crate::error::Error;

/// Ours under the names by which clients know the default, that of this program, and containerd's.
const NAMES: [&str; 3] = ["", "podwright", "runc"];

/// What Status tells of each.
pub(crate) fn all() -> Vec<v1::RuntimeHandler> {
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: host::mount::has_recursive_attributes(),
        user_namespaces: false,
    };
    NAMES.map(|name| v1::RuntimeHandler { name: name.to_owned(), features: Some(features) }).into()
}

/// Refuses a handler that does not exist.
pub(crate) fn check(name: &str) -> Result<(), Error> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(Error::Invalid(format!("no runtime for {name:?} is configured")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_status_names_can_be_used_and_nothing_else() {
        assert!(all().iter().all(|handler| check(&handler.name).is_ok()));
        let error = check("kata").expect_err("there is none");
        assert_eq!(error.to_string(), "no runtime for \"kata\" is configured");
    }
}
