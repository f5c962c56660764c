//! The one task per process that programs netfilter: owners submit what they want, it writes the difference.
//!
//! Submissions that arrive while a restore runs are written together by the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::programs::{ProgramError, Programs};
use super::render::{parse_saved, render_restore};
use super::ruleset::{Family, Position, Ruleset, Table};

/// Who submits: each owner's ruleset replaces its former one. The order is the order of their jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The service proxy: `KUBE-*`.
    Proxy,
    /// The CNI client: `CNI-*`.
    Cni,
}

/// How the writer works.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// Which family it programs.
    pub family: Family,
}

/// Why rules are not programmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// A program failed or is missing.
    #[error("program netfilter rules")]
    Program(#[source] Arc<ProgramError>),
    /// The writer's task ended: the agent is shutting down.
    #[error("the netfilter writer has ended")]
    Ended,
}

enum Command {
    Submit { owner: Owner, rules: Ruleset, done: oneshot::Sender<Result<(), WriteError>> },
    Clear { done: oneshot::Sender<Result<(), WriteError>> },
}

/// Starts writers; see the module.
#[derive(Debug)]
pub struct Writer;

impl Writer {
    /// Starts the task in the current tokio runtime, in whose network namespace the rules will be. It touches nothing
    /// before the first submission.
    #[must_use]
    pub fn spawn(config: WriterConfig) -> WriterHandle {
        let (commands, receiver) = mpsc::channel(64);
        tokio::spawn(run(config, receiver));
        WriterHandle { commands }
    }
}

/// How owners reach the writer.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    commands: mpsc::Sender<Command>,
}

impl WriterHandle {
    /// Makes `rules` the whole of what `owner` wants; returns when they are programmed.
    ///
    /// # Errors
    /// When iptables is missing or refuses: the former rules stay, and the next submission tries again.
    pub async fn submit(&self, owner: Owner, rules: Ruleset) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Submit { owner, rules, done }, answer).await
    }

    /// Removes every chain and jump of ours, whoever submitted it, also of former processes.
    ///
    /// # Errors
    /// When iptables is missing or refuses.
    pub async fn clear(&self) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Clear { done }, answer).await
    }

    async fn send(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<(), WriteError>>,
    ) -> Result<(), WriteError> {
        self.commands.send(command).await.map_err(|_| WriteError::Ended)?;
        answer.await.map_err(|_| WriteError::Ended)?
    }
}

/// What is programmed now, as far as we know.
struct State {
    programs: Programs,
    programmed: Ruleset,
}

async fn run(config: WriterConfig, mut commands: mpsc::Receiver<Command>) {
    let mut owners: BTreeMap<Owner, Ruleset> = BTreeMap::new();
    // Forgotten after a failure: then what is programmed is read again.
    let mut state: Option<State> = None;
    let mut batch = Vec::new();
    while commands.recv_many(&mut batch, 64).await > 0 {
        let mut waiting = Vec::new();
        for command in batch.drain(..) {
            match command {
                Command::Submit { owner, rules, done } => {
                    owners.insert(owner, rules);
                    waiting.push(done);
                }
                Command::Clear { done } => {
                    owners.clear();
                    waiting.push(done);
                }
            }
        }
        let mut wanted = Ruleset::default();
        for rules in owners.values() {
            wanted.merge(rules);
        }
        let written = write(config.family, state.take(), wanted).await;
        let answer = match written {
            Ok(now) => {
                state = Some(now);
                Ok(())
            }
            Err(error) => Err(error),
        };
        for done in waiting {
            // Whoever asked may have gone.
            let _ = done.send(answer.clone());
        }
    }
}

async fn write(family: Family, state: Option<State>, wanted: Ruleset) -> Result<State, WriteError> {
    let work = tokio::task::spawn_blocking(move || {
        let mut state = match state {
            Some(state) => state,
            None => {
                let programs = Programs::find(family)?;
                let programmed = at_positions_of(&wanted, &parse_saved(&programs.save()?));
                State { programs, programmed }
            }
        };
        if let Some(input) = render_restore(&state.programmed, &wanted) {
            tracing::debug!(bytes = input.len(), "restoring netfilter rules");
            state.programs.restore(&input)?;
        }
        state.programmed = wanted;
        Ok(state)
    });
    match work.await {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(error)) => Err(WriteError::Program(Arc::new(error))),
        Err(_) => Err(WriteError::Ended),
    }
}

/// A saved jump does not tell its position: one that is wanted stands where it is wanted.
fn at_positions_of(wanted: &Ruleset, saved: &Ruleset) -> Ruleset {
    let mut placed = Ruleset::default();
    for table in Table::ALL {
        for (name, rules) in saved.chains(table) {
            placed.chain(table, name, rules.to_vec());
        }
        for hook in saved.hooks(table) {
            let last = wanted.hooks(table).iter().any(|wish| {
                wish.builtin == hook.builtin && wish.rule == hook.rule && wish.position == Position::Last
            });
            let position = if last { Position::Last } else { Position::First };
            placed.hook(table, &hook.builtin, &hook.rule, position);
        }
    }
    placed
}
