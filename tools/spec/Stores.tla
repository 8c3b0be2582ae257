------------------------------- MODULE Stores -------------------------------
(***************************************************************************)
(* What is durable in SQLite (the source) and in PostgreSQL (the target),  *)
(* what the server knows in memory, and the initial state.                 *)
(*                                                                         *)
(* One revision counter orders all changes of the source. The revision of  *)
(* a message stands for its content. Revision 0 means "no message".        *)
(*                                                                         *)
(* Comments name the code that a definition stands for; paths are relative *)
(* to server/sagastore_server/.                                            *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
  Ids,           \* message ids
  OldIds,        \* ids that have a message before the migration begins
  Writers,       \* clients that write, one call at a time
  Readers,       \* clients that read, one call at a time
  StartPhase,    \* phase of the initial state: 1 (nothing done) or 4 (PostgreSQL has everything)
  MaxRevision,   \* greatest revision: bounds the number of writes
  MaxCrashes,    \* how often the server may crash
  MaxCuts,       \* how often a connection, a deadline or PostgreSQL may fail
  MaxMoves,      \* how many changes of phase the operator may start
  MaxSetBacks,   \* how often PostgreSQL may return to an earlier state
  MaxTakeOvers,  \* how often another server may take the lease
  Options,       \* further actions to include: a set of names, see Included
  Mistakes       \* planted mistakes: a set of names, see Mistake

VARIABLES
  source,        \* durable state of SQLite
  target,        \* durable state of PostgreSQL
  targetUp,      \* whether PostgreSQL runs
  backup,        \* earlier state of PostgreSQL to which it may be set back
  inFlight,      \* transactions on their way to PostgreSQL
  server,        \* what the server knows in memory; lost in a crash
  writes,        \* the call of each writer
  reads,         \* the call of each reader
  floor,         \* per id: newest revision that was acknowledged or shown to a client
  absences,      \* per id: revisions at which there is no message
  broken,        \* promises that were broken at some step: a set of names
  faults         \* counters of what the constants bound

clients == <<writes, reads, floor, absences, broken>>
vars == <<source, target, targetUp, backup, inFlight, server, clients, faults>>

Included(name) == name \in Options
Mistake(name) == name \in Mistakes

SqliteOnly == 1
DualWrite == 2
Backfill == 3
ReadPostgres == 4
PostgresOnly == 5

Journals(phase) == phase \in DualWrite..ReadPostgres   \* Phase.journals

NoHolder == 0                \* no server holds the lease
OtherServer == 1000              \* another server holds the lease
FormerServer == 1001          \* another server was the last holder; its name stays in the record

Max(a, b) == IF a > b THEN a ELSE b
Greatest(S) == CHOOSE x \in S : \A y \in S : x >= y
Least(S) == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : x <= y

(* The newest change of an id that a store knows: a message or a tombstone. *)
Latest(store, i) == Max(store.row[i], store.tomb[i])

(* Whether `row` is a correct answer for a client that must see revision `least` or newer. *)
Fits(row, i, least) ==
  IF row # 0 THEN row >= least ELSE \E r \in absences[i] : r >= least

-----------------------------------------------------------------------------
(* States *)

NoCall == [state |-> "none", id |-> CHOOSE i \in Ids : TRUE, delete |-> FALSE, revision |-> 0]
NoRead == [state |-> "none", id |-> CHOOSE i \in Ids : TRUE, floor |-> 0, from |-> "source",
           row |-> 0, seen |-> 0]

(* What Attach and BeginDualWrite read from the target's record. *)
NotInspected == [stage |-> "none", applied |-> 0, new |-> FALSE]

Down(incarnation) ==
  [up |-> FALSE,
   incarnation |-> incarnation,  \* number of the process; names the session of the lease
   phase |-> 0,                  \* phase in force: migration/current_state.py
   committed |-> 0,                   \* MigrationSource.committed: committed revisions known to the event loop
   standing |-> "detached",      \* Fallback.status: detached, following or current
   applied |-> 0,                \* Fallback.applied
   position |-> 0,               \* target's `applied` as last heard: what the next apply follows
   mark |-> {},                  \* TargetSession.mark: ids that the backfill has copied, as last heard
   inspected |-> NotInspected,   \* progress of attaching
   step |-> "none",              \* fence: none (open), closed, changed (durable), asking
   goal |-> "none",              \* what the fence is for
   held |-> FALSE,               \* LeaseGuard.held: has held the lease since it began to follow
   fenced |-> FALSE,             \* LeaseGuard.fenced: another server has taken over
   contested |-> FALSE]          \* LeaseGuard.contested: another server's lease was found running

Source ==
  [row |-> [i \in Ids |-> IF i \in OldIds THEN 1 ELSE 0],
   tomb |-> [i \in Ids |-> 0],   \* revision of the latest deletion
   revision |-> 1,               \* greatest revision given out
   journal |-> {},               \* entries <<sequence, id>>
   pruned |-> IF StartPhase = SqliteOnly THEN 0 ELSE 1,
   phase |-> StartPhase,         \* MigrationState.phase
   completing |-> FALSE,         \* MigrationState.completing: the last step has begun
   base |-> IF StartPhase = SqliteOnly THEN 0 ELSE 1]  \* MigrationState.base

Target ==
  IF StartPhase = SqliteOnly
  THEN [row |-> [i \in Ids |-> 0], tomb |-> [i \in Ids |-> 0], phase |-> SqliteOnly,
        holder |-> NoHolder, applied |-> 0, copied |-> {}, begun |-> FALSE]
  ELSE [row |-> Source.row, tomb |-> [i \in Ids |-> 0], phase |-> StartPhase,
        holder |-> 1, applied |-> 1, copied |-> Ids, begun |-> TRUE]

Init ==
  /\ source = Source
  /\ target = Target
  /\ targetUp = TRUE
  /\ backup = Target
  /\ inFlight = {}
  /\ server = [Down(1) EXCEPT !.up = TRUE, !.phase = StartPhase, !.committed = 1,
                 !.standing = IF StartPhase = SqliteOnly THEN "detached" ELSE "current",
                 !.held = StartPhase # SqliteOnly, !.applied = Target.applied, !.position = Target.applied, !.mark = Target.copied]
  /\ writes = [c \in Writers |-> NoCall]
  /\ reads = [c \in Readers |-> NoRead]
  /\ floor = Source.row
  /\ absences = [i \in Ids |-> IF i \in OldIds THEN {} ELSE {0}]
  /\ broken = {}
  /\ faults = [crashes |-> 0, cuts |-> 0, moves |-> 0, setBacks |-> 0, takeOvers |-> 0]

(* Uses up one of the faults that a constant bounds. *)
Spend(name, most) == faults[name] < most /\ faults' = [faults EXCEPT ![name] = @ + 1]

Attached == server.standing # "detached"
Current == server.standing = "current"
TakenOver == server.fenced \/ server.contested     \* LeaseGuard.check refuses calls
FenceOpen == server.step = "none"         \* migration/write_fence.py WriteFence
Stable == server.step = "none" /\ source.phase = server.phase   \* CurrentState.changing is free
=============================================================================
