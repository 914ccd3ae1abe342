-- Appends events to streams and stores the record of the place, all or nothing.
-- KEYS: the streams, and then the place if there is one.
-- ARGV: how many streams, MAXLEN or '', then of a placed write owner, writes so far,
-- writes after, record ('' of an unplaced one); how many forms of entries, and of each
-- how many fields it has, how many of them have one value in all its entries, the names,
-- and of those the position and the value; how many kinds of entries, and of each its
-- stream and its form; and for each event: its kind, its id, the other values. The server
-- hands the arguments to the script one by one, and names and values that each event
-- brought along would be two thirds of them.
local streams, maxlen, placed = tonumber(ARGV[1]), ARGV[2], #KEYS > tonumber(ARGV[1])
local place = KEYS[#KEYS]
if placed then
  local now = redis.call('HMGET', place, 'owner', 'writes')
  if (now[1] or '') ~= ARGV[3] then return {'fenced'} end
  if (now[2] or '0') ~= ARGV[4] then return {'forgot', now[2] or '0'} end
  if not redis.acl_check_cmd('HSET', place, 'f', 'v') then return {'denied', 0, 'HSET'} end
end
for i = 1, streams do
  local t = redis.call('TYPE', KEYS[i]).ok
  if t ~= 'stream' and t ~= 'none' then return {'type', i, t} end
  if not redis.acl_check_cmd('XADD', KEYS[i], '*', 'f', 'v') then return {'denied', i, 'XADD'} end
  if not redis.acl_check_cmd('XDEL', KEYS[i], '0-1') then return {'denied', i, 'XDEL'} end
  if not redis.acl_check_cmd('XINFO', 'STREAM', KEYS[i]) then return {'denied', i, 'XINFO'} end
end

local call, unpack, tonumber, type, argv = redis.pcall, unpack, tonumber, type, ARGV
local at, forms = 8, {} -- forms: fields as XADD has them, and where values go
for i = 1, tonumber(argv[7]) do
  local form, n, fixed = {fields = {}, open = {}}, tonumber(argv[at]), tonumber(argv[at + 1])
  for j = 1, n do
    form.fields[2 * j - 1], form.fields[2 * j] = argv[at + 1 + j], false
  end
  at = at + 2 + n
  for _ = 1, fixed do
    form.fields[2 * tonumber(argv[at])] = argv[at + 1]
    at = at + 2
  end
  for j = 2, 2 * n, 2 do
    if not form.fields[j] then form.open[#form.open + 1] = j end
  end
  forms[i] = form
end
local kinds = {} -- by their numbers as text, as the events have them
for i = 1, tonumber(argv[at]) do
  local form = forms[tonumber(argv[at + 2])]
  kinds[tostring(i)] = {stream = KEYS[tonumber(argv[at + 1])], fields = form.fields, open = form.open}
  at = at + 2
end
at = at + 1
local add = function(stream, id, fields) return call('XADD', stream, id, unpack(fields)) end
if maxlen ~= '' then
  add = function(stream, id, fields) return call('XADD', stream, 'MAXLEN', '~', maxlen, id, unpack(fields)) end
end

-- newest asks for the first part of the last id that a stream gave, kept by the server
-- even if the entry is gone, and a second part of the server's.
local function newest(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') .. '-*' end
  end
end

local late, where, ids = {}, {}, {} -- late: of streams whose ids are beyond our offsets
local last, event = #argv, 0
while at < last do
  event = event + 1
  local kind, want = kinds[argv[at]], argv[at + 1]
  local stream, fields, open = kind.stream, kind.fields, kind.open
  for j = 1, #open do fields[open[j]] = argv[at + 1 + j] end
  local ahead = late[stream]
  if ahead and (#want < #ahead or #want == #ahead and want <= ahead) then want = ahead end
  local id = add(stream, want, fields)
  if type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true) then
    late[stream] = newest(stream)
    id = add(stream, late[stream], fields)
  end
  if type(id) == 'table' then -- as if nothing had been
    for n = event - 1, 1, -1 do redis.call('XDEL', where[n], ids[n]) end
    return {'failed', event, id.err}
  end
  where[event], ids[event] = stream, id
  at = at + 2 + #open
end
if placed then redis.call('HSET', place, 'record', ARGV[6], 'writes', ARGV[5]) end
return {'ok'}
