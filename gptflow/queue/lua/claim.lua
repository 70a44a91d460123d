-- Take a queued job to run it, under a lease.
--
-- KEYS: the job's key
-- ARGV: prefix, id, worker, delivery (a number within the worker), seconds of the lease
-- Returns {"run" or "late", fence, attempt, crashes, submitted, task, envelope, signature,
-- item that it was marked with, 1 if it was enqueued again by hand}, or {why not}:
-- "gone", "busy" where it runs or must wait, or the state in which it ended. "late" is a claim,
-- too: the deadline has passed, and the worker is to record that.
--
-- Claiming again for the same delivery gives the same claim: a reply may get lost.
local _, id, worker, delivery, lease = unpack(ARGV)
local key, claimant = job_key(id), worker .. '#' .. delivery
local held = read(key, 'state', 'claim', 'fence', 'attempt', 'crashes', 'deadline', 'wire', 'sig',
  'at', 'revived')

local job = place_of(id)
if not held.state then return { 'gone' } end
local time = now()
local verdict = held.deadline and tonumber(held.deadline) <= time and 'late' or 'run'
if held.state == 'running' and held.claim ~= claimant then return { 'busy' } end
if held.state ~= 'running' then
  if held.state ~= 'queued' then return { held.state } end
  -- An old doorbell is no leave to run before the time, or beside others.
  if call('ZSCORE', P .. 'delayed', id) or call('ZSCORE', P .. 'suspects', id) then
    return { 'busy' }
  end
  withdraw(job)
  held.fence = call('HINCRBY', key, 'fence', 1)
  held.attempt = call('HINCRBY', key, 'attempt', 1)
  local till = time + lease
  call('HSET', key, 'state', 'running', 'worker', worker, 'claim', claimant,
    'started', text(time), 'until', text(till))
  call('ZADD', P .. 'lease', till, id)
end
return {
  verdict, tostring(held.fence), tostring(held.attempt), held.crashes or '0', job.submitted, job.task,
  held.wire or '', held.sig or '', held.at or '',
  held.revived or '',
}
