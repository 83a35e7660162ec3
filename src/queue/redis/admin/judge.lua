-- Stands before the looks for odd entries. At each key, what an agent would not have left there: what is wrong with it,
-- and what mends it if that is something else than moving it aside. Nil if nothing is wrong.
local function no_message(id)
  if not is_id(id) then return 'is no id' end
  if redis.call('HEXISTS', MESSAGES, id) == 0 then return 'belongs to no message' end
end
local function is_time(score) return tonumber(score) >= FIRST_TIME and tonumber(score) < HIGHEST end
local judges = {
  messages = function(id) if not is_id(id) then return 'is no id' end end,
  inflight = function(id, score)
    local wrong, owner = no_message(id), tonumber(score)
    if wrong then return wrong end
    if owner < 1 or owner > HIGHEST or owner % 1 ~= 0 then return 'is in flight in no agent', 'due' end
  end,
  waiting = function(member, score)
    local origin, id = string.sub(member, 1, -18), string.sub(member, -16)
    if string.sub(member, -17, -17) ~= '\n' or not is_id(id) then return 'is no origin and id' end
    local wrong = no_message(id)
    if wrong then return wrong end
    if tonumber(score) ~= 0 then return 'has a score, which hides others', 'right' end
    if not redis.call('ZSCORE', LANES, origin) then return 'waits for an endpoint that is never tried', 'right' end
  end,
  lanes = function(origin, due)
    if #waiting_of(origin, 1) == 0 then return 'has nothing that waits for it' end
    if tonumber(due) == NEVER and not is_paused(origin) then return 'is tried never, and nobody has paused it', 'right' end
  end,
  failures = function(origin, record)
    if not string.match(record, '^%d%d?%d?%d?%d?%d?%d?%d?%d? ') then return 'is no record of failures' end
    if not redis.call('ZSCORE', LANES, origin) then return 'has nothing that waits for it' end
  end,
  retry = function(id, score)
    local wrong = no_message(id)
    if wrong then return wrong end
    if tonumber(score) == NEVER then return 'is due never', 'due' end
  end,
  dead = function(id, score)
    local wrong = no_message(id)
    if wrong then return wrong end
    if not is_time(score) then return 'has no time of death', 'right' end
  end,
  history = function(id, record)
    local wrong = no_message(id)
    if wrong then return wrong end
    if not first_put_off(record) then return 'is no record of attempts' end
  end,
  recovered = function(id, count)
    local wrong = no_message(id)
    if wrong then return wrong end
    if not string.match(count, '^%d+$') or #count > 9 then return 'has no count' end
  end,
  agents = function(agent, lease)
    if not is_id(agent) then return "is no agent's number" end
    if tonumber(lease) ~= tonumber(lease_of(lease)) then return 'has no lease that could be', 'right' end
  end,
  calls = function(name, record)
    if name == 'recovered' or name == 'orders' then return end
    if name == 'ordered' then
      if not (string.match(record, '^%d+$') and tonumber(record) < HIGHEST) then return 'is no number of an order' end
      return
    end
    if name == 'counts' then
      if not string.match(record, '^%d+ %d+ %d+$') or #record > 50 then return 'is no count' end
      return
    end
    if name == 'clock' then
      local beaten = tonumber(record)
      if not (beaten and beaten >= 0 and beaten < HIGHEST) then return 'is no time' end
      return
    end
    local kind, agent = string.match(name, '^([sl]?)(%d+)$')
    if not agent or not is_id(agent) then return 'is no call' end
    local call, rest = string.match(record, '^(%d+)(.?)')
    if not call or #call > 15 or rest ~= '' and rest ~= ' ' then return 'is no record of calls' end
  end,
}
local function judge(name, member, value)
  if name == 'id' then
    local last = tonumber(value)
    if not (last and last >= 0 and last < HIGHEST) then return 'is no number that was given out' end
    return
  end
  return judges[name](member, value)
end
local key_of = {id = ID, messages = MESSAGES, inflight = INFLIGHT, waiting = WAITING, lanes = LANES, failures = FAILURES,
  retry = RETRY, dead = DEAD, history = HISTORY, recovered = RECOVERED, agents = AGENTS, calls = CALLS}
local is_hash = {messages = true, failures = true, history = true, recovered = true, calls = true}
