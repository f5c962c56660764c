//! What an exec or attach session says at its end, as kubectl and crictl read it. Pure.

use serde_json::json;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Well.
    Success,
    /// The command did not.
    Exit {
        /// What ran.
        command: Vec<String>,
        /// How it ended.
        code: i32,
    },
    /// There was no session, or it broke.
    Failed {
        /// `error executing command in container`, `error attaching to container`.
        what: &'static str,
        /// The error with its causes.
        cause: String,
    },
}

/// How the error stream is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A sentence, or nothing: before version 4.
    Text,
    /// A `metav1.Status`.
    Status,
}

impl Outcome {
    /// The content of the error stream.
    pub(super) fn write(&self, form: Form) -> String {
        match (self, form) {
            (Self::Success, Form::Text) => String::new(),
            (Self::Success, Form::Status) => json!({ "metadata": {}, "status": "Success" }).to_string(),
            (_, Form::Text) => self.message(),
            (Self::Exit { code, .. }, Form::Status) => json!({
                "metadata": {}, "status": "Failure", "message": self.message(), "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            })
            .to_string(),
            (Self::Failed { what, cause }, Form::Status) => json!({
                "metadata": {}, "status": "Failure", "message": self.message(), "reason": "InternalError",
                "details": { "causes": [{ "message": format!("{what}: {cause}") }] }, "code": 500,
            })
            .to_string(),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit { command, code } => format!(
                "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
                command.join(" ")
            ),
            Self::Failed { what, cause } => format!("Internal error occurred: {what}: {cause}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_clients_read_it() {
        let exit = Outcome::Exit { command: vec!["sh".into(), "-c".into(), "exit 3".into()], code: 3 };
        let failed = Outcome::Failed { what: "error attaching to container", cause: "gone".into() };
        check(&Outcome::Success, "", r#"{"metadata":{},"status":"Success"}"#);
        check(
            &exit,
            "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3",
            r#"{"details":{"causes":[{"message":"3","reason":"ExitCode"}]},"message":"command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#,
        );
        check(
            &failed,
            "Internal error occurred: error attaching to container: gone",
            r#"{"code":500,"details":{"causes":[{"message":"error attaching to container: gone"}]},"message":"Internal error occurred: error attaching to container: gone","metadata":{},"reason":"InternalError","status":"Failure"}"#,
        );
    }

    fn check(outcome: &Outcome, text: &str, status: &str) {
        assert_eq!(outcome.write(Form::Text), text);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&outcome.write(Form::Status)), read(status));
    }
}
