//! PURE: what a supervisor does next. Erlang/OTP's rules, with backoff between a fault and the start that follows it.
//!
//! Events come in, actions come out; time and chance are arguments. It starts nothing and waits for nothing: the
//! supervisor actor carries out the actions and reports what came of them.

use std::time::Duration;

use tokio::time::Instant;

use super::restart::{RestartWindow, Restarts};

/// Which siblings are restarted with a child that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// None: children do not depend on one another.
    #[default]
    OneForOne,
    /// All: children depend on one another.
    OneForAll,
    /// Those that were added after it: each child depends on the ones before it.
    RestForOne,
}

/// When a child is started again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// Always.
    Permanent,
    /// Only after a fault.
    Transient,
    /// Never; once ended it is forgotten.
    Temporary,
}

/// A child, for as long as its supervisor runs. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChildId(pub(crate) u64);

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// As told, or because it was done.
    Normal,
    /// The broker is away: nobody's fault.
    Outage,
    /// A fault of the child.
    Fault,
}

/// What the supervisor must do. Several come in the order in which they are to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the child, now.
    Start(ChildId),
    /// Tell the child to stop; its end is to be reported.
    Stop(ChildId),
    /// Report [`Plan::due`] for the child after this long.
    Wait(ChildId, Duration),
    /// Forget the child.
    Forget(ChildId),
    /// One restart too many, the last of this child: the supervisor ends with a fault once all have stopped.
    GiveUp(ChildId),
    /// All have stopped: end.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not running, and not to be started by itself.
    Down,
    Up,
    /// Told to stop; what follows its end.
    Stopping(Next),
    /// Ended; starts at this time.
    Waiting(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: by command, or at the supervisor's end.
    Rest,
    /// It is forgotten.
    Forget,
    /// It starts again at once, by command.
    Start,
    /// It is part of a group that restarts.
    Group,
}

#[derive(Debug)]
struct Slot {
    id: ChildId,
    restart: Restart,
    state: State,
    restarts: Restarts,
    /// Stopped by command: no restart of a group starts it.
    held: bool,
    /// Its last end was an outage.
    outage: bool,
}

/// A group that restarts: first its members stop, last one first; then, at its time, they start, first one first.
#[derive(Debug)]
struct Group {
    /// The child that failed.
    first: ChildId,
    members: Vec<ChildId>,
    due: Instant,
    waiting: bool,
}

#[derive(Debug)]
pub(crate) struct Plan {
    strategy: Strategy,
    window: RestartWindow,
    slots: Vec<Slot>,
    group: Option<Group>,
    ending: bool,
}

impl Plan {
    pub(crate) fn new(strategy: Strategy, window: RestartWindow) -> Self {
        Self { strategy, window, slots: Vec::new(), group: None, ending: false }
    }

    /// Adds a child after all others. It is not started by this. Its id is greater than theirs.
    pub(crate) fn add(&mut self, id: ChildId, restart: Restart) {
        self.slots.push(Slot {
            id,
            restart,
            state: State::Down,
            restarts: Restarts::new(),
            held: false,
            outage: false,
        });
    }

    /// By command: starts a child that is down, that waits, or that is on its way down.
    pub(crate) fn start(&mut self, id: ChildId) -> Vec<Action> {
        let ending = self.ending;
        let Some(slot) = self.slot(id) else { return Vec::new() };
        match slot.state {
            _ if ending => Vec::new(),
            State::Down | State::Waiting(_) => {
                (slot.held, slot.state) = (false, State::Up);
                if let Some(group) = &mut self.group {
                    // it does not wait for the others
                    group.members.retain(|member| *member != id);
                }
                vec![Action::Start(id)]
            }
            State::Stopping(Next::Rest) => {
                (slot.held, slot.state) = (false, State::Stopping(Next::Start));
                Vec::new()
            }
            State::Up | State::Stopping(Next::Start | Next::Group | Next::Forget) => Vec::new(),
        }
    }

    /// By command: stops a child and leaves it so.
    pub(crate) fn stop(&mut self, id: ChildId) -> Vec<Action> {
        self.stop_then(id, Next::Rest)
    }

    /// By command: stops a child and forgets it.
    pub(crate) fn remove(&mut self, id: ChildId) -> Vec<Action> {
        self.stop_then(id, Next::Forget)
    }

    /// By command: stops a child and starts it at once. Spends no intensity.
    pub(crate) fn restart(&mut self, id: ChildId) -> Vec<Action> {
        match self.slot(id).map(|slot| slot.state) {
            Some(State::Down | State::Waiting(_)) => self.start(id),
            Some(State::Up) => self.stop_then(id, Next::Start),
            Some(State::Stopping(_)) | None => Vec::new(),
        }
    }

    fn stop_then(&mut self, id: ChildId, next: Next) -> Vec<Action> {
        if self.ending {
            return Vec::new();
        }
        let Some(slot) = self.slot(id) else { return Vec::new() };
        slot.held = next != Next::Start;
        match slot.state {
            State::Up => {
                slot.state = State::Stopping(next);
                vec![Action::Stop(id)]
            }
            State::Stopping(_) => {
                slot.state = State::Stopping(next);
                Vec::new()
            }
            State::Down | State::Waiting(_) => {
                slot.state = State::Down;
                if next == Next::Forget { self.forget(id) } else { Vec::new() }
            }
        }
    }

    /// The supervisor is told to end: children stop one after the other, the last one first.
    pub(crate) fn shut_down(&mut self) -> Vec<Action> {
        self.ending = true;
        self.group = None;
        for slot in &mut self.slots {
            match slot.state {
                State::Waiting(_) => slot.state = State::Down,
                State::Stopping(_) => slot.state = State::Stopping(Next::Rest),
                State::Up | State::Down => {}
            }
        }
        self.go_on_ending()
    }

    fn go_on_ending(&mut self) -> Vec<Action> {
        if self.slots.iter().any(|slot| matches!(slot.state, State::Stopping(_))) {
            return Vec::new();
        }
        match self.slots.iter_mut().rev().find(|slot| slot.state == State::Up) {
            Some(slot) => {
                slot.state = State::Stopping(Next::Rest);
                vec![Action::Stop(slot.id)]
            }
            None => vec![Action::End],
        }
    }

    /// A child ended, having run for `ran` (zero where it never came to run).
    pub(crate) fn ended(
        &mut self,
        id: ChildId,
        how: How,
        ran: Duration,
        now: Instant,
        chance: f64,
    ) -> Vec<Action> {
        let ending = self.ending;
        let Some(slot) = self.slot(id) else { return Vec::new() };
        let state = std::mem::replace(&mut slot.state, State::Down);
        if ending {
            return self.go_on_ending();
        }
        match state {
            State::Up if !self.in_group(id) => self.ended_by_itself(id, how, ran, now, chance),
            State::Stopping(Next::Start) if !self.in_group(id) => self.start(id),
            State::Stopping(Next::Forget) => {
                let mut actions = self.forget(id);
                actions.extend(self.go_on_with_group(now));
                actions
            }
            State::Stopping(Next::Rest | Next::Group | Next::Start)
            | State::Up
            | State::Down
            | State::Waiting(_) => self.go_on_with_group(now),
        }
    }

    fn ended_by_itself(
        &mut self,
        id: ChildId,
        how: How,
        ran: Duration,
        now: Instant,
        chance: f64,
    ) -> Vec<Action> {
        let Some(at) = self.position(id) else { return Vec::new() };
        let slot = &mut self.slots[at];
        match (slot.restart, how) {
            (Restart::Temporary, _) => return self.forget(id),
            (Restart::Transient, How::Normal) => return Vec::new(),
            (Restart::Permanent, _) | (Restart::Transient, How::Fault | How::Outage) => {}
        }
        if how != How::Outage && !self.window.spend(now) {
            return self.give_up(id);
        }
        self.slots[at].outage = how == How::Outage;
        let after = self.slots[at].restarts.next(how == How::Outage, ran, chance);
        match self.strategy {
            Strategy::OneForOne => {
                self.slots[at].state = State::Waiting(now + after);
                vec![Action::Wait(id, after)]
            }
            Strategy::OneForAll => self.restart_group(0, id, now + after, now),
            Strategy::RestForOne => self.restart_group(at, id, now + after, now),
        }
    }

    /// A fault that does not end the child, and that spends a restart.
    pub(crate) fn fault(&mut self, id: ChildId, now: Instant) -> Vec<Action> {
        if self.ending || self.position(id).is_none() || self.window.spend(now) {
            Vec::new()
        } else {
            self.give_up(id)
        }
    }

    fn give_up(&mut self, id: ChildId) -> Vec<Action> {
        let mut actions = vec![Action::GiveUp(id)];
        actions.extend(self.shut_down());
        actions
    }

    /// All from position `from` stop, then start. A group that is restarting already grows.
    fn restart_group(&mut self, from: usize, first: ChildId, due: Instant, now: Instant) -> Vec<Action> {
        let mut members = Vec::new();
        for slot in self.slots[from..].iter_mut().filter(|slot| !slot.held) {
            match slot.state {
                State::Stopping(_) => slot.state = State::Stopping(Next::Group),
                State::Waiting(_) => slot.state = State::Down,
                State::Up | State::Down => {}
            }
            members.push(slot.id);
        }
        let mut due = due;
        if let Some(before) = self.group.take() {
            due = due.max(before.due);
            members.extend(before.members.into_iter().filter(|id| !members.contains(id)).collect::<Vec<_>>());
        }
        self.group = Some(Group { first, members, due, waiting: false });
        self.go_on_with_group(now)
    }

    fn go_on_with_group(&mut self, now: Instant) -> Vec<Action> {
        let Some(group) = &mut self.group else { return Vec::new() };
        let members = &group.members;
        let mut of_group = self.slots.iter_mut().filter(|slot| members.contains(&slot.id));
        if of_group.any(|slot| matches!(slot.state, State::Stopping(_))) {
            return Vec::new();
        }
        let mut of_group = self.slots.iter_mut().rev().filter(|slot| members.contains(&slot.id));
        if let Some(slot) = of_group.find(|slot| slot.state == State::Up) {
            slot.state = State::Stopping(Next::Group);
            return vec![Action::Stop(slot.id)];
        }
        if group.waiting {
            return Vec::new();
        }
        group.waiting = true;
        vec![Action::Wait(group.first, group.due.saturating_duration_since(now))]
    }

    /// Restarts within the period that counts, and how many are allowed.
    pub(crate) fn spent(&mut self, now: Instant) -> (u32, u32) {
        self.window.spent(now)
    }

    /// Whether the child's last end was an outage of the broker.
    pub(crate) fn is_outage(&self, id: ChildId) -> bool {
        self.slots.iter().any(|slot| slot.id == id && slot.outage)
    }

    /// The time that an [`Action::Wait`] named has come.
    pub(crate) fn due(&mut self, id: ChildId, now: Instant) -> Vec<Action> {
        if let Some(group) =
            self.group.take_if(|group| group.waiting && group.first == id && group.due <= now)
        {
            return self.start_group(&group.members);
        }
        match self.slot(id).map(|slot| slot.state) {
            Some(State::Waiting(until)) if until <= now && !self.in_group(id) => self.start(id),
            // stopped or started by command meanwhile, or waiting for a later time
            Some(State::Waiting(_) | State::Down | State::Up | State::Stopping(_)) | None => Vec::new(),
        }
    }

    fn start_group(&mut self, members: &[ChildId]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut forgotten = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| members.contains(&slot.id) && !slot.held) {
            match (slot.state, slot.restart) {
                // one that a command started meanwhile goes on
                (State::Up | State::Stopping(_), _) => {}
                (State::Down | State::Waiting(_), Restart::Temporary) => forgotten.push(slot.id),
                (State::Down | State::Waiting(_), Restart::Permanent | Restart::Transient) => {
                    slot.state = State::Up;
                    actions.push(Action::Start(slot.id));
                }
            }
        }
        actions.extend(forgotten.into_iter().flat_map(|id| self.forget(id)));
        actions
    }

    fn forget(&mut self, id: ChildId) -> Vec<Action> {
        self.slots.retain(|slot| slot.id != id);
        vec![Action::Forget(id)]
    }

    fn in_group(&self, id: ChildId) -> bool {
        self.group.as_ref().is_some_and(|group| group.members.contains(&id))
    }

    /// Ids grow in the order in which children are added, which is the order of the slots.
    fn position(&self, id: ChildId) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    fn slot(&mut self, id: ChildId) -> Option<&mut Slot> {
        self.position(id).map(|at| &mut self.slots[at])
    }
}
