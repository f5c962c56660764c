//! The one task per process that programs netfilter: owners submit what they want, it writes the difference.
//!
//! Submissions that arrive while a restore runs are written together by the next one. When somebody else may have changed
//! the tables, what is there is compared with what was written, and what is missing put back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::programs::{OwnPrograms, ProgramError, Programs};
use super::render::{in_words_of, parse_saved, render_restore};
use super::ruleset::{Family, PerFamily, Ruleset};
use super::watch::Watcher;

/// Who submits: each owner's ruleset replaces its former one. The order is the order of their jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The service proxy: `KUBE-*`.
    Proxy,
    /// The CNI client: `PODWRIGHT-*`. Chains that begin with `CNI-` are those of plugin binaries.
    Cni,
    /// The network of other nodes' pods: `PODNET-*`.
    Podnet,
}

impl Owner {
    /// Everyone.
    pub const ALL: [Self; 3] = [Self::Proxy, Self::Cni, Self::Podnet];

    /// What its chains' names begin with. Nothing else is changed or deleted for it.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "KUBE-",
            Self::Cni => "PODWRIGHT-",
            Self::Podnet => "PODNET-",
        }
    }
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
    Submit { owner: Owner, rules: PerFamily<Ruleset>, done: oneshot::Sender<Result<(), WriteError>> },
    Clear { owners: Vec<Owner>, done: oneshot::Sender<Result<(), WriteError>> },
    Release { owner: Owner, done: oneshot::Sender<Result<(), WriteError>> },
    Inspect { done: oneshot::Sender<Result<(), WriteError>> },
}

/// Starts writers; see the module.
#[derive(Debug)]
pub struct Writer;

impl Writer {
    /// Starts the task in the current tokio runtime, in whose network namespace the rules will be. It touches nothing
    /// before the first submission, and no chain of an owner that never submits.
    #[must_use]
    pub fn spawn() -> WriterHandle {
        let (commands, receiver) = mpsc::channel(64);
        tokio::spawn(run(receiver));
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
    pub async fn submit(&self, owner: Owner, rules: PerFamily<Ruleset>) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Submit { owner, rules, done }, answer).await
    }

    /// Removes every chain and jump of these owners, also of former processes. Without iptables there are none.
    ///
    /// # Errors
    /// When iptables refuses.
    pub async fn clear(&self, owners: &[Owner]) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Clear { owners: owners.to_vec(), done }, answer).await
    }

    /// Forgets an owner and leaves its chains and jumps as they are, for another program that owns those names from now
    /// on. What that one writes is not compared with anything; a later submission takes the chains over again.
    ///
    /// # Errors
    /// When iptables refuses to tell what is there.
    pub async fn release(&self, owner: Owner) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Release { owner, done }, answer).await
    }

    /// Reads what is there of everyone's rules, and puts back what is missing; returns when it is there.
    ///
    /// # Errors
    /// When iptables is missing or refuses.
    pub async fn inspect(&self) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Inspect { done }, answer).await
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

/// What is programmed now in one family, as far as we know.
struct State {
    programs: Programs,
    programmed: Ruleset,
    /// Whose chains were looked for when it was read.
    owners: BTreeSet<Owner>,
}

/// What was asked for so far.
#[derive(Default)]
struct Wishes {
    rules: BTreeMap<Owner, PerFamily<Ruleset>>,
    /// Whoever submitted or was cleared: its chains that nobody wants go.
    owners: BTreeSet<Owner>,
    /// Whether everything of somebody's must go, in both families.
    cleared: bool,
}

impl Wishes {
    fn take(&mut self, command: Command) -> oneshot::Sender<Result<(), WriteError>> {
        match command {
            Command::Submit { owner, rules, done } => {
                self.owners.insert(owner);
                self.rules.insert(owner, rules);
                done
            }
            Command::Clear { owners, done } => {
                self.rules.retain(|owner, _| !owners.contains(owner));
                self.owners.extend(owners);
                self.cleared = true;
                done
            }
            Command::Release { owner, done } => {
                self.owners.remove(&owner);
                self.rules.remove(&owner);
                done
            }
            Command::Inspect { done } => done,
        }
    }

    fn of(&self, family: Family) -> Ruleset {
        let mut wanted = Ruleset::default();
        for rules in self.rules.values() {
            wanted.merge(rules.of(family));
        }
        wanted
    }
}

/// Why what is programmed is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// Owners want something else.
    Wish,
    /// Somebody else may have changed it.
    Suspicion,
}

async fn run(mut commands: mpsc::Receiver<Command>) {
    let mut wishes = Wishes::default();
    // Forgotten after a failure: then what is programmed is read again.
    let mut states: PerFamily<Option<State>> = PerFamily::default();
    let own = Arc::new(OwnPrograms::default());
    let mut watcher = Watcher::idle();
    let mut batch = Vec::new();
    loop {
        let occasion = tokio::select! {
            biased;
            count = commands.recv_many(&mut batch, 64) => match count {
                0 => return,
                _ => Occasion::Wish,
            },
            () = watcher.changed() => Occasion::Suspicion,
        };
        let inspects = batch.iter().any(|command| matches!(command, Command::Inspect { .. }));
        let waiting: Vec<_> = batch.drain(..).map(|command| wishes.take(command)).collect();
        let mut answer = write_all(&mut states, &wishes, occasion, &own).await;
        if inspects {
            answer = answer.and(write_all(&mut states, &wishes, Occasion::Suspicion, &own).await);
        }
        let known = Family::ALL.into_iter().filter(|family| states.of(*family).is_some());
        let families: Vec<Family> = known.collect();
        if let Some(first) = families.first().and_then(|family| states.of(*family).as_ref()) {
            watcher.settle(first.programs.backend, families, &own);
        }
        if let (Occasion::Suspicion, Err(error)) = (occasion, &answer) {
            tracing::warn!(%error, cause = ?std::error::Error::source(error).map(ToString::to_string), "flushed netfilter rules are not back yet");
            watcher.look_again();
        }
        for done in waiting {
            // Whoever asked may have gone.
            let _ = done.send(answer.clone());
        }
    }
}

async fn write_all(
    states: &mut PerFamily<Option<State>>,
    wishes: &Wishes,
    occasion: Occasion,
    own: &Arc<OwnPrograms>,
) -> Result<(), WriteError> {
    let mut outcome = Ok(());
    for family in Family::ALL {
        let state = states.of_mut(family);
        match write(family, state.take(), wishes, occasion, own).await {
            Ok(now) => *state = now,
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Brings one family to what is wanted of it; nothing is known of a family in which nothing was ever wanted.
async fn write(
    family: Family,
    state: Option<State>,
    wishes: &Wishes,
    occasion: Occasion,
    own: &Arc<OwnPrograms>,
) -> Result<Option<State>, WriteError> {
    let (wanted, owners, own) = (wishes.of(family), wishes.owners.clone(), own.clone());
    let unwanted = wanted.is_empty();
    // A node without IPv6 is not asked for its IPv6 rules.
    if unwanted && state.is_none() && family == Family::V6 && !wishes.cleared {
        return Ok(None);
    }
    let work = tokio::task::spawn_blocking(move || {
        match bring(family, state, wanted, owners, occasion, &own) {
            // Where there is no iptables there are no rules to remove.
            Err(ProgramError::Missing { .. } | ProgramError::Failed { .. })
                if unwanted && family == Family::V6 =>
            {
                Ok(None)
            }
            Err(ProgramError::Missing { .. }) if unwanted => Ok(None),
            other => other.map(Some),
        }
    });
    match work.await {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(error)) => Err(WriteError::Program(Arc::new(error))),
        Err(_) => Err(WriteError::Ended),
    }
}

fn bring(
    family: Family,
    state: Option<State>,
    wanted: Ruleset,
    owners: BTreeSet<Owner>,
    occasion: Occasion,
    own: &OwnPrograms,
) -> Result<State, ProgramError> {
    let read = |programs: &Programs, written: &Ruleset| -> Result<Ruleset, ProgramError> {
        let prefixes: Vec<&str> = owners.iter().map(|owner| owner.prefix()).collect();
        Ok(in_words_of(written, &parse_saved(&programs.save()?, &prefixes)))
    };
    let mut state = match state {
        Some(state) if state.owners == owners && occasion == Occasion::Wish => state,
        Some(state) => {
            let programmed = read(&state.programs, &state.programmed)?;
            State { programmed, owners: owners.clone(), ..state }
        }
        None => {
            let programs = Programs::find(family)?;
            let programmed = read(&programs, &wanted)?;
            State { programs, programmed, owners: owners.clone() }
        }
    };
    if let Some(input) = render_restore(&state.programmed, &wanted) {
        match occasion {
            Occasion::Wish => tracing::debug!(bytes = input.len(), "restoring netfilter rules"),
            Occasion::Suspicion => {
                tracing::warn!(
                    ?family,
                    bytes = input.len(),
                    "somebody changed our netfilter rules; putting them back"
                );
            }
        }
        state.programs.restore_noted(&input, own)?;
    }
    // Which chains of others are there stays as it was read.
    let mut now = wanted;
    now.know_chains_of(&state.programmed);
    state.programmed = now;
    Ok(state)
}
