//! The built program, as far as it can be asked without root.

use std::process::{Command, Output};

#[expect(clippy::disallowed_methods, reason = "the program itself is asked")]
fn podwright(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podwright")).args(arguments).output().expect("the program runs")
}

#[test]
fn flags_may_stand_before_oci() {
    let plain = podwright(&["oci", "--version"]);
    assert!(plain.status.success() && !plain.stdout.is_empty(), "{plain:?}");
    for flags in [&["-v"][..], &["--log-level", "debug"]] {
        let flagged = podwright(&[flags, &["oci", "--version"]].concat());
        assert!(flagged.status.success(), "{flagged:?}");
        assert_eq!(flagged.stdout, plain.stdout, "{flags:?}");
    }
}
