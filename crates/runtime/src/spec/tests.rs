//! What is refused, in the client's words.

use super::*;

#[test]
fn an_apparmor_profile_is_refused_by_name_and_with_what_the_host_lacks() {
    let field = |kind: ProfileType, name: &str| v1::LinuxContainerSecurityContext {
        apparmor: Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() }),
        ..Default::default()
    };
    #[expect(deprecated, reason = "older clients say it so")]
    let words = |profile: &str| v1::LinuxContainerSecurityContext {
        apparmor_profile: profile.into(),
        ..Default::default()
    };
    let absent = "the AppArmor profile \"web\" cannot be enforced: AppArmor is not enabled on the host";
    let unsupported = "the AppArmor profile \"web\" is not supported yet";
    for (security, has_apparmor, expect) in [
        (field(ProfileType::Localhost, "web"), false, Some(absent)),
        (field(ProfileType::Localhost, "web"), true, Some(unsupported)),
        (words("localhost/web"), false, Some(absent)),
        (words("runtime/default"), false, None),
        (field(ProfileType::RuntimeDefault, ""), false, None),
        (field(ProfileType::Unconfined, ""), true, None),
        (v1::LinuxContainerSecurityContext::default(), false, None),
    ] {
        let told = refuse_apparmor(&security, has_apparmor).map_err(|error| error.to_string());
        assert_eq!(told.err().as_deref(), expect, "{security:?}");
    }
}
