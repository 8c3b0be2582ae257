----------------------------- MODULE Replication ------------------------------
(* Replication from the source to the target: transactions, attaching, the journal, the backfill. *)
EXTENDS Clients

(* Transactions to the target. `wait`: the server waits for the answer. One that is not     *)
(* awaited (after a time-out or a crash) may still commit later.                             *)

Transaction(kind) ==
  [kind |-> kind, session |-> server.incarnation, state |-> "sent", wait |-> TRUE,
   upto |-> 0, rows |-> [i \in {} |-> 0], covers |-> {}, follows |-> server.position, mark |-> server.mark]

Awaited(kind) ==
  \E t \in inFlight : t.kind = kind /\ t.session = server.incarnation /\ t.wait

(* What the source holds under some ids now. *)
Content(ids) == [i \in ids |-> [row |-> source.row[i], tomb |-> source.tomb[i]]]

(* The transactions after the server has stopped waiting for those of a kind in `kinds`. *)
Forsaken(kinds) ==
  {IF t.kind \in kinds THEN [t EXCEPT !.wait = FALSE] ELSE t :
     t \in {u \in inFlight : u.state = "sent" \/ ~(u.kind \in kinds)}}

Replication == {"apply", "copy"}

(* The row that the target has after bury and upsert: postgresql/journal_apply.py, migration.sql. *)
Merged(t, i) ==
  LET tomb == IF t.kind = "apply" THEN Max(target.tomb[i], t.rows[i].tomb) ELSE target.tomb[i]
      left == IF target.row[i] < tomb THEN 0 ELSE target.row[i]
      new == t.rows[i].row IN
  IF new = 0 \/ tomb > new \/ left > new THEN left ELSE new

WithRows(t) ==
  [target EXCEPT
     !.row = [i \in Ids |-> IF i \in DOMAIN t.rows THEN Merged(t, i) ELSE target.row[i]],
     !.tomb = [i \in Ids |-> IF i \in DOMAIN t.rows /\ t.kind = "apply" /\ ~Mistake("skip-tombstones")
                             THEN Max(target.tomb[i], t.rows[i].tomb) ELSE target.tomb[i]]]

(* Compare-and-set: a transaction states the position, or the mark, that it follows. *)
InPlace(t) ==
  CASE t.kind = "apply" -> target.applied = t.follows \/ Mistake("no-compare")
    [] t.kind = "copy" -> target.copied = t.mark \/ Mistake("copy-no-compare")
    [] t.kind = "finish" -> (target.applied = t.follows /\ target.copied = t.mark)
                            \/ Mistake("finish-no-compare")

HoldsLease(t) == target.holder = t.session

Outcome(t) ==
  CASE t.kind = "apply" -> [WithRows(t) EXCEPT !.applied = Max(@, t.upto)]
    [] t.kind = "copy" -> [WithRows(t) EXCEPT !.copied = t.mark \union t.covers, !.begun = TRUE]
    [] t.kind = "finish" -> [target EXCEPT !.phase = PostgresOnly, !.holder = NoHolder]

CommitTransaction(t) ==
  /\ t \in inFlight /\ t.state = "sent" /\ targetUp /\ target.phase # PostgresOnly
  /\ HoldsLease(t) \/ Mistake("no-lease-check")
  /\ InPlace(t)
  /\ target' = Outcome(t)
  /\ inFlight' = (inFlight \ {t}) \union (IF t.wait THEN {[t EXCEPT !.state = "done"]} ELSE {})
  /\ broken' = IF HoldsLease(t) THEN broken ELSE broken \union {"committed without the lease"}
  /\ UNCHANGED <<source, targetUp, backup, server, writes, reads, floor, absences, faults>>

(* A transaction without a waiting server is lost. *)
LoseTransaction(t) ==
  /\ t \in inFlight /\ t.state = "sent" /\ ~t.wait
  /\ inFlight' = inFlight \ {t}
  /\ UNCHANGED <<source, target, targetUp, backup, server, clients, faults>>

(* The server receives the answer of a commit: Replicator._advance, Backfill._apply. *)
HearCommit(t) ==
  /\ server.up /\ t \in inFlight /\ t.state = "done" /\ t.session = server.incarnation
  /\ t.kind \in Replication
  /\ server' = [server EXCEPT !.applied = Max(@, t.upto),
                              !.position = IF t.kind = "apply" THEN t.upto ELSE @,
                              !.mark = IF t.kind = "copy" THEN t.mark \union t.covers ELSE @]
  /\ inFlight' = inFlight \ {t}
  /\ UNCHANGED <<source, target, targetUp, backup, clients, faults>>

(* Fallback.detach: nothing more is applied, and the source answers reads. *)
Detached == [server EXCEPT !.standing = "detached", !.inspected = NotInspected]
LetGo == inFlight' = Forsaken(Replication) /\ reads' = ReadsFallBack

(* The target refuses: it has another position or mark. The server attaches again. *)
HearMismatch(t) ==
  /\ server.up /\ t \in inFlight /\ t.state = "sent" /\ t.wait /\ targetUp
  /\ t.session = server.incarnation /\ t.kind \in Replication
  /\ HoldsLease(t) /\ ~InPlace(t)
  /\ server' = Detached
  /\ inFlight' = Forsaken(Replication) \ {[t EXCEPT !.wait = FALSE]} /\ reads' = ReadsFallBack
  /\ UNCHANGED <<source, target, targetUp, backup, writes, floor, absences, broken, faults>>

(* TargetSession.renew: MigrationTarget.renew shows that the target was set back. *)
HearSetBack ==
  /\ server.up /\ Attached /\ targetUp
  /\ \/ target.holder = server.incarnation /\ target.applied < server.position
     \/ /\ target.holder = server.incarnation /\ ~(server.mark \subseteq target.copied)
        /\ ~Mistake("renew-ignores-mark")
  /\ server' = Detached /\ LetGo
  /\ UNCHANGED <<source, target, targetUp, backup, writes, floor, absences, broken, faults>>

(* Replicator.lease_lost: a transaction, or renew, is refused because of the lease. The server serves *)
(* nothing until it knows whether another server has it (attachment.wait_for_lost_lease).                   *)
HearLeaseLost ==
  /\ server.up /\ Attached /\ targetUp /\ target.holder # server.incarnation
  /\ server.goal # "last step"
  /\ server' = [Detached EXCEPT !.contested = TRUE] /\ LetGo
  /\ UNCHANGED <<source, target, targetUp, backup, writes, floor, absences, broken, faults>>

-----------------------------------------------------------------------------
(* Attaching: migration/attachment.py attach. Four steps: inspect, claim, reconcile, set_phase. *)

MayAttach ==
  /\ server.up /\ Journals(server.phase) /\ ~server.fenced
  /\ ~Attached \/ (Included("reattach") /\ ~Current)      \* TargetSession.reattach
  /\ server.step # "asking"
  /\ targetUp /\ target.phase # PostgresOnly /\ target.applied <= source.revision

(* What the server finds. "new": the backfill has not begun, so it copies what the journal lacks. *)
Found(stage) == [stage |-> stage, applied |-> target.applied, new |-> ~target.begun]

(* Entries for everything that changed after a revision: MigrationSource.set_state. *)
Rejournalled(after) ==
  {<<source.row[i], i>> : i \in {j \in Ids : source.row[j] > after}}
    \union {<<source.tomb[i], i>> : i \in {j \in Ids : source.tomb[j] > after}}

(* Up to where the target needs nothing from the journal; of a new one the backfill copies the rest. *)
JournalStart(found) ==
  IF ~found.new THEN found.applied
  ELSE IF Mistake("new-skips-pruned") THEN Max(source.base, source.pruned)
  ELSE Max(found.applied, source.base)

(* attachment._reconcile: changes missing in the target and the journal are journalled again. *)
Reconciled(found) ==
  IF JournalStart(found) < source.pruned /\ ~Mistake("no-rejournal")
  THEN [source EXCEPT !.journal = @ \union Rejournalled(JournalStart(found)), !.pruned = JournalStart(found)]
  ELSE source

(* MigrationTarget.set_phase raises `applied` of a new target to where its journal begins. *)
Raised(found) ==
  IF found.new THEN Max(target.applied, JournalStart(found)) ELSE target.applied

(* Transactions sent before are no longer awaited. *)
Attach(found) ==
  /\ inFlight' = Forsaken({"apply"})
  /\ target' = [target EXCEPT !.applied = Raised(found), !.phase = server.phase,
                              !.holder = server.incarnation]
  /\ server' = [Detached EXCEPT !.standing = "following", !.applied = Raised(found),
                                !.position = Raised(found), !.mark = target.copied,
                                !.held = TRUE, !.contested = FALSE]

(* Another server's lease is never taken (LEASE_HELD). A server that has held the lease    *)
(* itself is fenced, also if the other one has gone (LEASE_LOST). A record that names an   *)
(* earlier server on the same file comes from a PostgreSQL that was set back: it is taken. *)
FreeToTake == target.holder # OtherServer /\ (target.holder = FormerServer => ~server.held)

FindRival ==
  /\ MayAttach /\ server.inspected.stage \in {"none", "found"} /\ ~FreeToTake
  /\ server' = [Detached EXCEPT !.contested = ~server.held, !.fenced = server.held]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

(* The four steps in one, for instances in which no relevant action comes between them. *)
AttachAtOnce ==
  /\ ~Included("attach in steps") /\ MayAttach /\ FreeToTake
  /\ source' = Reconciled(Found("found"))
  /\ Attach(Found("found"))
  /\ UNCHANGED <<targetUp, backup, clients, faults>>

(* The target has another position than when it was claimed: the server must inspect it again. *)
MovedSince(found) == target.applied # found.applied

AttachInspect ==
  /\ Included("attach in steps") /\ MayAttach /\ server.inspected.stage = "none"
  /\ server' = [server EXCEPT !.inspected = Found("found")]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

AttachClaim ==
  /\ MayAttach /\ server.inspected.stage = "found" /\ FreeToTake
  /\ server' = [server EXCEPT !.inspected = Found("claimed")]
  /\ target' = [target EXCEPT !.holder = server.incarnation]
  /\ UNCHANGED <<source, targetUp, backup, inFlight, clients, faults>>

AttachReconcile ==
  /\ MayAttach /\ server.inspected.stage = "claimed"
  /\ source' = Reconciled(server.inspected)
  /\ server' = [server EXCEPT !.inspected.stage = "reconciled"]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, clients, faults>>

AttachSetPhase ==
  /\ MayAttach /\ server.inspected.stage = "reconciled" /\ target.holder = server.incarnation
  /\ ~MovedSince(server.inspected) \/ Mistake("attach-no-compare")
  /\ Attach(server.inspected)
  /\ UNCHANGED <<source, targetUp, backup, clients, faults>>

(* Attaching fails at any step, and begins again. *)
AttachFails ==
  /\ server.up
  /\ \/ server.inspected.stage \in {"found", "claimed", "reconciled"} /\ ~targetUp
     \/ server.inspected.stage \in {"claimed", "reconciled"}
        /\ (target.holder # server.incarnation \/ MovedSince(server.inspected))
  /\ server' = [server EXCEPT !.inspected = NotInspected]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

-----------------------------------------------------------------------------
(* Replication: migration/replicator.py Replicator._step; migration/backfill.py *)

(* After a lost connection the target is not trusted any more, but a step in progress is finished. *)
Steps == Attached \/ (Included("lost connections") /\ server.held)

(* Reads a batch of the journal, and sends it. *)
SendBatchUpto(upto) ==
  /\ server.up /\ Steps /\ ~Awaited("apply") /\ server.inspected.stage = "none"
  /\ inFlight' = inFlight \union
       {[Transaction("apply") EXCEPT !.upto = upto,
           !.rows = Content({e[2] : e \in {x \in source.journal : x[1] > server.applied /\ x[1] <= upto}})]}
  /\ UNCHANGED <<source, target, targetUp, backup, server, clients, faults>>

SendBatch ==
  \E upto \in {e[1] : e \in {x \in source.journal : x[1] > server.applied}} : SendBatchUpto(upto)

(* The journal is empty, so the target has all changes committed before. *)
AdvanceTo(revision) ==
  /\ server.up /\ Steps /\ ~Awaited("apply") /\ Journals(server.phase)
  /\ server.applied < revision /\ revision <= server.committed
  /\ \A e \in source.journal : e[1] <= server.applied \/ e[1] > revision
  /\ source.phase = server.phase \/ Mistake("empty-journal-says-all")
  /\ server' = [server EXCEPT !.applied = revision]
  /\ UNCHANGED <<source, target, targetUp, backup, inFlight, clients, faults>>

AdvanceWithoutEntries == AdvanceTo(server.committed)

(* Reads rows that are older than the journal, and sends them. *)
SendPage ==
  /\ server.up /\ Attached /\ server.phase \in {Backfill, ReadPostgres} /\ ~Awaited("copy")
  /\ \E i \in Ids \ server.mark :
       inFlight' = inFlight \union {[Transaction("copy") EXCEPT !.rows = Content({i}), !.covers = {i}]}
  /\ UNCHANGED <<source, target, targetUp, backup, server, clients, faults>>

(* Removes entries that the target has confirmed. *)
PruneUpto(upto) ==
  /\ server.up /\ \E e \in source.journal : e[1] <= upto
  /\ source' = [source EXCEPT
       !.journal = {e \in @ : e[1] > upto},
       !.pruned = IF MaxSetBacks = 0 THEN @   \* matters only to a target that was set back
                  ELSE Max(@, Greatest({e[1] : e \in {x \in source.journal : x[1] <= upto}}))]
  /\ UNCHANGED <<target, targetUp, backup, inFlight, server, clients, faults>>

Prune == Attached /\ Journals(source.phase) /\ PruneUpto(server.applied)
=============================================================================
