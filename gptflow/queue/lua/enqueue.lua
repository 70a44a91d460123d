-- Accept a job: its record, its place in the queue and its idempotency key, all or nothing.
--
-- KEYS: the job's key
-- ARGV: prefix, id, envelope as JSON, class, tenant, task, then any of these names, each with a
--   value: key (idempotency), deadline, not_before (Unix seconds), items, batch, sig, input (what
--   the envelope's `input_ref` refers to), next (1: the envelope says what follows the job),
--   adopt (1: a doorbell for it has been taken already)
-- Returns one of
--   {"accepted", id}
--   {"known", id}                        this id, or an earlier job's of the same key
--   {"full", what is full, seconds}      try again in so many seconds
--   {"memory", percent, seconds}         the server's memory is nearly used up
--   {"cancelled", batch}                 the batch takes no more messages
--   {"invalid", why}
local _, id, wire, class, tenant, task = unpack(ARGV)
local given = {}
for index = 7, #ARGV, 2 do given[ARGV[index]] = ARGV[index + 1] end

if not string.find(id, '^job_[0-9a-f-]+$') or #id > 68 then return { 'invalid', 'id' } end
if not HORIZON[class] then return { 'invalid', 'class' } end
if not string.find(tenant, '^[%w_.-]+$') or #tenant > 64 then return { 'invalid', 'tenant' } end
if given.batch and not string.find(given.batch, '^batch_[0-9a-f-]+$') then
  return { 'invalid', 'batch' }
end
if task == '' or #task > 128 or string.find(task, '[%c/]') then return { 'invalid', 'task' } end

local policy = read(P .. 'policy', 'limit:' .. class, 'limit:tenant', 'memory', 'payload', 'pace')
if #wire + #(given.input or '') > tonumber(policy.payload or 67108864) then
  return { 'invalid', 'size' }
end

local key, idem = job_key(id), nil
if given.key then
  idem = P .. 'idem:' .. tenant .. ':' .. task .. ':' .. given.key
  local earlier = call('GET', idem)
  if earlier and call('EXISTS', job_key(earlier)) == 1 then return { 'known', earlier } end
end
if call('EXISTS', key) == 1 then return { 'known', id } end
if given.batch and call('HGET', batch_key(given.batch), 'cancelled') == '1' then
  return { 'cancelled', given.batch }
end

-- A message that was sent past this script is in the queue already, limits or not.
if not given.adopt then
  local function refusal(kind, what, waiting)
    tally('refused:' .. class)
    local pace = math.max(tonumber(policy.pace or 1), 0.1)
    return { kind, what, string.format('%.1f', math.max(0.5, math.min(60, waiting / pace))) }
  end
  local share = tonumber(policy.memory or 80)
  local memory = call('INFO', 'memory')
  local most = tonumber(string.match(memory, 'maxmemory:(%d+)'))
  if most > 0 and share > 0 then
    local used = 100 * tonumber(string.match(memory, 'used_memory:(%d+)')) / most
    if used >= share then return refusal('memory', string.format('%d', used), 5) end
  end
  for name, field in pairs({ [class] = 'limit:' .. class, [class .. '/' .. tenant] = 'limit:tenant' }) do
    local limit = tonumber(policy[field] or 0)
    local waiting = tonumber(call('HGET', P .. 'depth', name) or 0)
    if limit > 0 and waiting + tonumber(given.items or 1) > limit and waiting > 0 then
      return refusal('full', name, waiting)
    end
  end
end

local time = now()
local not_before = tonumber(given.not_before or 0)
local deadline = tonumber(given.deadline)
local job = {
  id = id, class = class, tenant = tenant, cost = tonumber(given.items or 1),
  plugin = string.match(task, '^[^.]*'), submitted = text(time),
  due = text(deadline or math.max(time, not_before) + HORIZON[class]),
}
local fields = {
  'id', id, 'task', task, 'state', 'queued', 'class', class, 'tenant', tenant, 'wire', wire,
  'submitted', job.submitted, 'due', job.due, 'attempt', 0, 'fence', 0, 'crashes', 0,
}
for _, name in ipairs({ 'deadline', 'items', 'batch', 'sig', 'next' }) do
  if given[name] then fields[#fields + 1] = name; fields[#fields + 1] = given[name] end
end
if idem then fields[#fields + 1] = 'idem'; fields[#fields + 1] = idem end
-- Nothing of it expires before it has ended.
call('HSET', key, unpack(fields))
if idem then call('SET', idem, id) end
if given.input then call('SET', P .. 'input:' .. id, given.input) end
if given.batch then add_message(given.batch, id, job.cost) end
call('ZADD', P .. 'jobs', time, id)
call('ZREMRANGEBYRANK', P .. 'jobs', 0, -LISTED - 1)
tally('accepted:' .. class)

begin_waiting(job, not_before > time and text(not_before) or nil)
if not_before > time then
  wait_until(job, not_before)
elseif given.adopt then
  mark_fed(job, time)
else
  make_ready(job)
  call('PUBLISH', P .. 'wake', class)
end
return { 'accepted', id }
