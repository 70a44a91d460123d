-- Ring for the next jobs: push a doorbell for each to the Celery queue of its class.
--
-- KEYS: the queues of the classes, in the order interactive, standard, batch
-- ARGV: prefix, credit (items that the worker can take now), reserve (items of the credit that
--   only interactive jobs may use), queue names as in KEYS ("" for one that the worker does not
--   read)
-- Returns {jobs fed, 1 if more wait, suspects that wait to be run alone}.
--
-- The best class comes first, except that a class that others overtake is owed a share of what
-- they get: see OWED.
local _, credit, reserve = unpack(ARGV)
local OWED = { standard = 0.25, batch = 0.125 }

local time = now()
release_delayed(time, 500)

local owed = read(P .. 'owed', 'standard', 'batch')
local function waits(class)
  return call('EXISTS', level_of(class)) == 1
end
local readable = {}
for index, class in ipairs(CLASSES) do
  readable[class] = ARGV[3 + index] and ARGV[3 + index] ~= '' and { KEYS[index], ARGV[3 + index] }
end

local function choose(room)
  local first, contended = nil, false
  for _, class in ipairs(CLASSES) do
    if readable[class] and waits(class) and (class == 'interactive' or room > tonumber(reserve)) then
      contended = contended or first ~= nil
      first = first or class
    end
  end
  for _, class in ipairs({ 'batch', 'standard' }) do
    if contended and readable[class] and waits(class) and tonumber(owed[class] or 0) > 0 then
      return class, contended
    end
  end
  return first, contended
end

local function doorbell(job, queue)
  local id = cjson.encode(job.id)
  return string.format(
    '{"body":%s,"content-encoding":"utf-8","content-type":"application/json","headers":{'
      .. '"lang":"lua","task":"gptflow.run","shadow":%s,"id":%s,"root_id":%s,"parent_id":null,'
      .. '"group":null,"retries":0,"timelimit":[null,null],"argsrepr":%s,"kwargsrepr":"{}",'
      .. '"ignore_result":true,"doorbell":true},"properties":{"correlation_id":%s,"delivery_mode":2,'
      .. '"delivery_info":{"exchange":"","routing_key":%s},"priority":0,"delivery_tag":%s}}',
    cjson.encode('[[' .. id .. '],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'),
    cjson.encode(job.task), id, id, cjson.encode("('" .. job.id .. "',)"), id, cjson.encode(queue),
    cjson.encode(job.id .. '.' .. text(time))
  )
end

local room = tonumber(credit) - tonumber(call('HGET', P .. 'depth', '@fed') or 0)
local fed = 0
while room > 0 do
  local class, contended = choose(room)
  if not class then break end
  local job = pop_ready(class)
  local queue = readable[class]
  mark_fed(job, time)
  call('LPUSH', queue[1], doorbell(job, queue[2]))
  fed, room = fed + 1, room - job.cost
  for name, share in pairs(OWED) do
    local debt = contended and waits(name) and tonumber(owed[name] or 0) + share * job.cost or 0
    if name == class and contended then debt = tonumber(owed[name] or 0) + (share - 1) * job.cost end
    owed[name] = debt
  end
end

local more = 0
for _, class in ipairs(CLASSES) do if readable[class] and waits(class) then more = 1 end end
if more == 1 then
  if fed > 0 then call('HSET', P .. 'owed', 'standard', owed.standard, 'batch', owed.batch) end
else
  call('DEL', P .. 'owed')
end
return { fed, more, call('ZCARD', P .. 'suspects') }
