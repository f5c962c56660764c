//! The one task per process that programs netfilter: owners submit what they want, it writes the difference.
//!
//! Submissions that arrive while a restore runs are written together by the next one, and each owner is answered for its
//! own. When somebody else may have changed the tables, what is there is compared with what was written, and what is missing
//! put back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use host::error::chain;
use tokio::sync::{mpsc, oneshot};

use super::programmed::{Failures, Occasion, OwnTables, Programmed, Wanted};
use super::programs::{OwnPrograms, ProgramError, Programs};
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
    Inspect { owner: Owner, done: oneshot::Sender<Result<(), WriteError>> },
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
    /// When iptables is missing or refuses these rules: the former ones stay, and the next submission tries again.
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

    /// Reads what is there of everyone's rules, and puts back what is missing; returns when that of `owner` is there.
    ///
    /// # Errors
    /// When iptables is missing or refuses.
    pub async fn inspect(&self, owner: Owner) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Inspect { owner, done }, answer).await
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

/// What was asked for so far.
#[derive(Default)]
struct Wishes {
    rules: BTreeMap<Owner, Arc<PerFamily<Ruleset>>>,
    /// Whoever submitted or was cleared: its chains that nobody wants go.
    owners: BTreeSet<Owner>,
    /// Whether everything of somebody's must go, in both families.
    cleared: bool,
}

impl Wishes {
    fn take(&mut self, command: Command) -> Waiting {
        match command {
            Command::Submit { owner, rules, done } => {
                self.owners.insert(owner);
                self.rules.insert(owner, Arc::new(rules));
                (vec![owner], done)
            }
            Command::Clear { owners, done } => {
                self.rules.retain(|owner, _| !owners.contains(owner));
                self.owners.extend(&owners);
                self.cleared = true;
                (owners, done)
            }
            Command::Release { owner, done } => {
                self.owners.remove(&owner);
                self.rules.remove(&owner);
                (vec![owner], done)
            }
            Command::Inspect { owner, done } => (vec![owner], done),
        }
    }

    fn of(&self, family: Family, asked: &BTreeSet<Owner>, occasion: Occasion) -> Wanted {
        let (rules, owners) = (self.rules.clone(), self.owners.clone());
        Wanted { family, rules, owners, asked: asked.clone(), occasion }
    }
}

/// Who waits for what of whom.
type Waiting = (Vec<Owner>, oneshot::Sender<Result<(), WriteError>>);

/// What is known of each family; nothing before anything was wanted of it, or when it cannot be read.
type States = PerFamily<Option<Programmed<OwnTables>>>;

async fn run(mut commands: mpsc::Receiver<Command>) {
    let mut wishes = Wishes::default();
    let mut states = States::default();
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
        let waiting: Vec<Waiting> = batch.drain(..).map(|command| wishes.take(command)).collect();
        let asked = waiting.iter().flat_map(|(owners, _)| owners).copied().collect();
        let mut failed = write_all(&mut states, &wishes, &asked, occasion, &own).await;
        if inspects {
            failed.extend(write_all(&mut states, &wishes, &asked, Occasion::Suspicion, &own).await);
        }
        let known = Family::ALL.into_iter().filter(|family| states.of(*family).is_some());
        let families: Vec<Family> = known.collect();
        if let Some(first) = families.first().and_then(|family| states.of(*family).as_ref()) {
            watcher.settle(first.tables.programs.backend, families, &own);
        }
        if let (Occasion::Suspicion, Some(error)) = (occasion, failed.values().next()) {
            tracing::warn!(error = chain(error), "flushed netfilter rules are not back yet");
            watcher.look_again();
        }
        for (owners, done) in waiting {
            let failure = owners.iter().find_map(|owner| failed.get(owner));
            // Whoever asked may have gone.
            let _ = done.send(failure.cloned().map_or(Ok(()), Err));
        }
    }
}

/// Brings both families to what is wanted; gives whose rules are not there then.
async fn write_all(
    states: &mut States,
    wishes: &Wishes,
    asked: &BTreeSet<Owner>,
    occasion: Occasion,
    own: &Arc<OwnPrograms>,
) -> BTreeMap<Owner, WriteError> {
    let mut failed = BTreeMap::new();
    for family in Family::ALL {
        let state = states.of_mut(family);
        let wanted = wishes.of(family, asked, occasion);
        // A node without IPv6 is not asked for its IPv6 rules.
        if wanted.claimants().next().is_none() && state.is_none() && family == Family::V6 && !wishes.cleared {
            continue;
        }
        let (former, own) = (state.take(), own.clone());
        let work = tokio::task::spawn_blocking(move || write(former, &wanted, &own));
        let (now, told) = work.await.unwrap_or_else(|_| (None, everybody(&WriteError::Ended)));
        *state = now;
        for (owner, error) in told {
            failed.entry(owner).or_insert(error);
        }
    }
    failed
}

fn everybody(error: &WriteError) -> BTreeMap<Owner, WriteError> {
    Owner::ALL.into_iter().map(|owner| (owner, error.clone())).collect()
}

type Written = (Option<Programmed<OwnTables>>, BTreeMap<Owner, WriteError>);

/// Brings one family to what is wanted of it. Blocking.
fn write(state: Option<Programmed<OwnTables>>, wanted: &Wanted, own: &Arc<OwnPrograms>) -> Written {
    let is_unwanted = wanted.claimants().next().is_none();
    match bring(state, wanted, own) {
        Ok((state, failed)) => {
            let told = failed.into_iter().map(|(owner, error)| (owner, WriteError::Program(error)));
            (Some(state), told.collect())
        }
        // Where there is no iptables there are no rules to remove.
        Err(ProgramError::Missing { .. }) if is_unwanted => (None, BTreeMap::new()),
        Err(error) => {
            let mut failed = everybody(&WriteError::Program(Arc::new(error)));
            if wanted.family == Family::V6 {
                // A node may have no IPv6: that is nothing to those who want nothing of it.
                failed.retain(|owner, _| wanted.claimants().any(|one| one == *owner));
            }
            (None, failed)
        }
    }
}

fn bring(
    state: Option<Programmed<OwnTables>>,
    wanted: &Wanted,
    own: &Arc<OwnPrograms>,
) -> Result<(Programmed<OwnTables>, Failures), ProgramError> {
    let mut state = match state {
        Some(state) => state,
        None => {
            let tables = OwnTables { programs: Programs::find(wanted.family)?, own: own.clone() };
            Programmed::read(tables, &wanted.owners)?
        }
    };
    let failed = state.bring(wanted)?;
    Ok((state, failed))
}
